"""Studies: many runs on one cache, compared in one table."""
