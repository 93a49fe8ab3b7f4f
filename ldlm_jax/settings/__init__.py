"""Values of a config and paths: as they stand in files, by old names, and in a user's spelling."""
