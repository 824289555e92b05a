"""Drawing, showing and judging samples of a trained network."""
