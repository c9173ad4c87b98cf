"""What a run takes, from a model's config.json and the run's config alone: memory by phase, disk, hours."""
