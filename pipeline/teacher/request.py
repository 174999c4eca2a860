"""Checks what is asked of a teacher, without torch: address, levels, and the student's grid."""

import difflib
from collections.abc import Iterable

from pipeline.errors import ConfigError

LIBRARIES = ("open_clip", "timm")
RANDOM = "random"  # the tag of untrained weights
LOCAL = "local"  # the tag of weights from a folder
_FORMS = "open_clip:MODEL/TAG, open_clip:local-dir:PATH, timm:MODEL[.TAG] or timm:local-dir:PATH"


def split_address(spec: str) -> tuple[str, str]:
    """Split LIBRARY:NAME; raises ConfigError that lists the accepted forms."""
    library, _, name = spec.partition(":")
    if library not in LIBRARIES or not name:
        hint = "" if library in LIBRARIES else suggestion(library, LIBRARIES)
        raise ConfigError(f"teacher {spec!r} is not the address of a teacher: {hint}accepted is {_FORMS}")
    return library, name


def suggestion(value: str, known: Iterable[str]) -> str:
    """Return `did you mean ...? ` with up to three known names like the value, or nothing."""
    close = difflib.get_close_matches(value, list(known), n=3)
    return f"did you mean {' or '.join(repr(name) for name in close)}? " if close else ""


def resolve_levels(levels: str, depth: int) -> tuple[int, ...]:
    """Return ascending block numbers from 0: `5` is the last five, `7,9,11` a list, `11,` a list of one.

    Raises ConfigError for numbers that are out of range, repeated or not ascending.
    """

    def refusal(found: str) -> ConfigError:
        return ConfigError(
            f"levels {levels!r} asks for {found}, but the teacher has {depth} blocks: "
            f"give a count from 1 to {depth}, or ascending block numbers from 0 to {depth - 1} "
            f"such as '{depth - 1},'"
        )

    parts = [part.strip() for part in levels.split(",")]
    named = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    if wrong := [part for part in named if not (part.isascii() and part.isdigit())]:
        raise refusal(repr(wrong[0]))
    numbers = tuple(map(int, named))
    if len(parts) == 1:
        if not 1 <= numbers[0] <= depth:
            raise refusal(f"{numbers[0]} blocks")
        return tuple(range(depth - numbers[0], depth))
    if outside := [number for number in numbers if number >= depth]:
        raise refusal(f"block {outside[0]}")
    if numbers != tuple(sorted(set(numbers))):
        raise refusal("numbers that repeat or do not ascend")
    return numbers


def student_grid(image_size: int, patch_size: int) -> int:
    """Return the patches along a side of the student's image; raises ConfigError with sizes that would do."""
    if patch_size < 1 or image_size < 1:
        raise ConfigError(
            f"image size {image_size} and patch size {patch_size} must be positive, such as 224 and 16"
        )
    grid, rest = divmod(image_size, patch_size)
    if rest or not grid:
        sizes = " or ".join(str(count * patch_size) for count in (grid, grid + 1) if count)
        raise ConfigError(
            f"image size {image_size} is not a multiple of patch size {patch_size}; give image size {sizes}"
        )
    return grid
