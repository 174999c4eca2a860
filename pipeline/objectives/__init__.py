"""What a student learns: one file for each objective. Works on tensors only."""
