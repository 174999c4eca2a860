"""The demo: a generator of captioned pictures and the small CLIP that was trained on them."""
