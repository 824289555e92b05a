"""What lies outside of the machine: trackers, the Hugging Face hub, and published weights of metrics."""
