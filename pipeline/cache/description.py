"""What a cache holds, in rows of a name and a text for people."""

from collections.abc import Iterator

from pipeline.cache.reader import Cache
from pipeline.errors import printable


def describe_cache(cache: Cache) -> Iterator[tuple[str, str]]:
    """Yield the name and text of each row; a row without a name continues the one before."""
    schema = cache.schema
    teacher, view = schema.teacher, schema.view
    trained = "" if teacher.trained else ", untrained"
    stored = {"final norm": teacher.post_norm_eps is not None, "projection": teacher.projection_width}
    output = " and ".join(name for name, there in stored.items() if there)
    is_stored = f", its {output} {'are' if ' and ' in output else 'is'} stored" if output else ""
    rank = ""
    if schema.keep < 1:
        rank = f", the first of a ranking by {schema.keep_rank} (--keep {schema.keep:g})"
    yield "cache", f"{printable(cache.address)} (schema {schema.version}, digest {cache.digest[:16]})"
    yield "teacher", f"{teacher.address(teacher.tag)}{trained}, weights {teacher.weights_sha256[:16]}"
    pixels = f"patches of {teacher.patch_size} in {teacher.input_size} pixels"
    yield "", f"{teacher.depth} blocks of width {teacher.width}, {pixels}"
    yield "", f"ran in {teacher.precision}{is_stored}"
    yield "levels", ", ".join(map(str, schema.levels))
    packed = "" if schema.compressor == "none" else f", compressed by {schema.compressor}"
    yield (
        "encoding",
        f"{schema.encoding}{packed}, channels calibrated on {schema.calibration.pictures} images",
    )
    cls = ", and CLS" if teacher.has_cls else ""
    yield "patches", f"{schema.stored_patches} of {schema.patches} a view{rank}{cls}"
    crops = f"crops of {view.crop_scale[0]:g} to {view.crop_scale[1]:g} of the area"
    yield "views", f"{view.image_size} pixels as {view.format}, {crops},"
    yield "", f"flipped with probability {view.flip:g}, seed {view.seed}"
