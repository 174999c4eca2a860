"""Units with real crops, and old names of tests/caches.py until all tests import from there."""

from caches import publish_arrays

from pipeline.views.view_tars import ViewTarWriter, tar_sample

__all__ = ["publish_arrays", "write_view_tar"]


def write_view_tar(path, samples, view_format):
    """Write (key, crop, members) samples to a view tar; return its WrittenFile and the (offset, length, crc32c) of each."""
    tar = ViewTarWriter(path)
    for key, crop, members in samples:
        tar.append(tar_sample(key, crop, members, view_format))
    return tar.close(), tar.ranges
