"""The options of pack-images and what they pin."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.schema import UNIT_ROWS
from pipeline.errors import ConfigError, printable
from pipeline.storage.address import is_url, tar_name_fault

_LEAST_IN_TAR, _MOST_IN_TAR, _USUAL_TARS = 1000, 2500, 2000


@dataclass(frozen=True)
class PackingOptions:
    """Options of a packing. Raises ConfigError for values that are wrong with any source."""

    source: str
    out: str
    images_per_tar: int | None = None
    shorter_side: int | None = None
    quality: int | None = None
    classes: Path | None = None
    path_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    seed: int = 0
    workers: int = 0
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        """Check what typer cannot."""
        for option, address in (("SOURCE", self.source), ("OUT", self.out)):
            if is_url(address):
                cure = "pack from and to a disk, then copy the tars"
                raise ConfigError(f"{option} {printable(address)!r} is a URL: {cure}")
        if self.images_per_tar is not None and not 1 <= self.images_per_tar <= UNIT_ROWS:
            raise ConfigError(
                f"--images-per-tar {self.images_per_tar} is out of range: give 1 to {UNIT_ROWS:,}, "
                "the most that a tar of a cache may have"
            )
        if fault := tar_name_fault(self.tar_name(0)):
            raise ConfigError(f"OUT {self.out!r} gives its name to the tars, and it {fault}: choose another")

    def tar_name(self, number: int) -> str:
        """Return the name of a tar: that of the folder OUT, which keeps sets apart, and a number."""
        return f"{Path(self.out).resolve().name}-{number:06d}.tar"

    def most_in_tar(self, images: int) -> int:
        """Return the most images of a tar, of so many in all."""
        return self.images_per_tar or min(_MOST_IN_TAR, max(_LEAST_IN_TAR, images // _USUAL_TARS))
