"""The student: a timm ViT that sees only the visible patches. Its code works on arrays and tensors only."""
