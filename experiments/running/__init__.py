"""Running trainings, and planning what one needs on a slice of TPUs."""
