"""Where a run's time goes, and where its numbers go."""
