"""Checks what is asked of a teacher, without torch: address, levels, and the student's grid."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, suggestion
from pipeline.storage.address import name_fault

LIBRARIES = ("open_clip", "timm")
RANDOM = "random"  # the tag of untrained weights
LOCAL = "local"  # the tag of weights from a folder
LOCAL_DIR = "local-dir:"  # stands before the path of a folder
_FORMS = "open_clip:MODEL/TAG, open_clip:local-dir:PATH, timm:MODEL[.TAG] or timm:local-dir:PATH"


@dataclass(frozen=True)
class Address:
    """Where a network is, LIBRARY:NAME, and what messages call it: `teacher 'timm:vit_base_patch16_224'`."""

    library: str
    name: str
    noun: str = "teacher"

    def __str__(self) -> str:
        return f"{self.noun} {f'{self.library}:{self.name}'!r}"


def split_address(spec: str, noun: str = "teacher") -> Address:
    """Split LIBRARY:NAME; raises ConfigError that lists the accepted forms."""
    library, _, name = spec.partition(":")
    if library not in LIBRARIES or not name:
        hint = "" if library in LIBRARIES else suggestion(library, LIBRARIES)
        raise ConfigError(f"{noun} {spec!r} is not the address of a {noun}: {hint}accepted is {_FORMS}")
    address = Address(library, name, noun)
    if fault := name_fault(name):
        raise ConfigError(f"{address} has a name that {fault}: rename its folder")
    return address


def absolute_teacher(spec: str) -> str:
    """Return an address that means the same in any working folder; raises ConfigError as above."""
    address = split_address(spec)
    folder = address.name.removeprefix(LOCAL_DIR)
    return spec if folder == address.name else f"{address.library}:{LOCAL_DIR}{Path(folder).resolve()}"


def parse_levels(levels: str) -> int | tuple[int, ...]:
    """Return the count of last blocks, as in `5`, or the ascending block numbers of `7,9,11` or `11,`.

    Raises ConfigError for anything else.
    """
    parts = [part.strip() for part in levels.split(",")]
    named = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    wrong = next((repr(part) for part in named if not (part.isascii() and part.isdigit())), "")
    numbers = () if wrong else tuple(map(int, named))
    if numbers != tuple(sorted(set(numbers))):
        wrong = "numbers that repeat or do not ascend"
    elif len(parts) == 1 and numbers == (0,):
        wrong = "0 blocks"
    if wrong:
        raise ConfigError(
            f"levels {levels!r} asks for {wrong}: give a count of the last blocks such as 5, "
            "or ascending block numbers from 0 such as '7,9,11' or '11,'"
        )
    return numbers if len(parts) > 1 else numbers[0]


def resolve_levels(levels: str, depth: int) -> tuple[int, ...]:
    """Return ascending block numbers of a teacher; raises ConfigError for those that it does not have."""
    asked = parse_levels(levels)
    numbers = tuple(range(depth - asked, depth)) if isinstance(asked, int) else asked
    if numbers[0] < 0 or numbers[-1] >= depth:
        outside = next((number for number in numbers if number >= depth), 0)
        found = f"{asked} blocks" if isinstance(asked, int) else f"block {outside}"
        raise ConfigError(
            f"levels {levels!r} asks for {found}, but the teacher has {depth} blocks: "
            f"give a count from 1 to {depth}, "
            f"or ascending block numbers from 0 to {depth - 1} such as '{depth - 1},'"
        )
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
