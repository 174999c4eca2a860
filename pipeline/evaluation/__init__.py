"""What features are worth: k-nearest neighbours over a bank of labelled images."""
