"""Units from arrays that are at hand, published as an extraction publishes them."""

from pipeline.cache.writer import UnitWriter, is_committed
from pipeline.storage.files import DigestedFile
from pipeline.views.view_tars import ViewTarWriter, tar_sample


def publish_arrays(folder, schema, unit, arrays, view_tar, skipped, scratch):
    """Publish a unit of arrays by name and a tar's WrittenFile or bytes; False if another process was first."""
    if is_committed(folder, unit):
        return False
    writer = UnitWriter(folder, schema, unit, scratch)
    for name, rows in arrays.items():
        writer.append(name, rows)
    if isinstance(view_tar, bytes):
        file = DigestedFile(writer.view_tar)
        file.write(view_tar)
        view_tar = file.close()
    published = writer.publish(view_tar, skipped)
    writer.discard()
    return published


def write_view_tar(path, samples, view_format):
    """Write (key, crop, members) samples to a view tar; returns its WrittenFile and the (offset, length, crc32c) of each."""
    tar = ViewTarWriter(path)
    for key, crop, members in samples:
        tar.append(tar_sample(key, crop, members, view_format))
    return tar.close(), tar.ranges
