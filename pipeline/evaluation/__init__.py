"""Evaluation of networks: a Subject computes features of Data, and a Score holds the result."""
