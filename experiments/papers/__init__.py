"""The claims of papers: what has been shown of them, and their recipes in small."""
