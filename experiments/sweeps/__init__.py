"""Ablations: their cells, the places where these run, and the pages that compare them."""
