"""The claims of papers, which of them are confirmed, and their recipes in reduced form."""
