"""The demo: a generator of captioned images, and the small CLIP in teacher/ that tools/train_demo_teacher.py trained on them."""
