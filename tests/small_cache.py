"""Old names of tests/caches.py and tests/tars.py, until all tests import from there."""

from caches import IMAGE_SIZE, PATCH_SIZE, TEACHER, extraction_options
from caches import real as small_cache
from tars import CLASSES, add_member, image, write_tar
from tars import make_tars as make_shards

__all__ = [
    "CLASSES",
    "IMAGE_SIZE",
    "PATCH_SIZE",
    "TEACHER",
    "add_member",
    "extraction_options",
    "image",
    "make_shards",
    "small_cache",
    "write_tar",
]
