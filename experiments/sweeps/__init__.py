"""Ablations: their cells, where these run, and the pages that compare them."""
