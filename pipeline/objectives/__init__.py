"""The objectives that a student learns, one file each. They work on tensors only."""
