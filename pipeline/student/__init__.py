"""The student: a timm ViT that sees only the visible patches. It knows arrays and tensors only."""
