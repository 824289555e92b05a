"""Trainings while they run, and what one would need on a slice of TPUs."""
