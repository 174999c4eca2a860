"""What `import maskalign` offers: a cache in one's own code, and both stages as functions."""
