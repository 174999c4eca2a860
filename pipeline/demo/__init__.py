"""The demo: captioned images, and teacher/, a small CLIP that tools/train_demo_teacher.py trained."""
