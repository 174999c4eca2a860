"""Old names of tests/caches.py, until all tests import from there."""

from caches import make_schema
from caches import random_rows as made_up_rows

__all__ = ["made_up_rows", "make_schema"]
