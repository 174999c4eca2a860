"""The demo: a generator of captioned images and the small CLIP that was trained on them."""
