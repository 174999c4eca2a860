"""The students and batches of student_fixtures.py."""

from student_fixtures import images, tiny_encoder, visible

__all__ = ["images", "tiny_encoder", "visible"]
