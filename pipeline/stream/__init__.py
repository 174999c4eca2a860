"""Input of stage two: crops and cached targets, joined, masked and batched, in a reproducible order."""
