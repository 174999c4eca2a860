"""What a run leaves to look at: a self-contained page of charts and images."""
