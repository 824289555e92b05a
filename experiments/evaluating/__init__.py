"""Samples of a trained network, drawn, shown and judged."""
