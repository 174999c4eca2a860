"""The report of a run: a self-contained page of charts and images."""
