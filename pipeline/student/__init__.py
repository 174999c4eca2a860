"""The student: masks, a timm vision transformer that sees only the visible patches, dynamic alignment, the loss.

It works on arrays and tensors alone: where they come from, and which teacher made the targets, is not its concern.
"""
