"""Export of a network for other libraries, with a model card."""
