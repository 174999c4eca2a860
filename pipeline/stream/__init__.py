"""Stage two's input: crops and cached targets, joined, masked and batched, in an order that is a pure function."""
