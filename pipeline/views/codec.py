"""Pictures to pixels and back. Whatever decides the pixels of a crop is named in DECODER and RESIZE, which every cache records."""

import io
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from pipeline.errors import SourceError

Pixels = NDArray[np.uint8]
ViewFormat = Literal["jpeg", "raw"]

VIEW_FORMATS: tuple[str, ...] = get_args(ViewFormat)
VIEW_EXTENSION: dict[str, str] = {"jpeg": "jpg", "raw": "npy"}
DECODER = "libjpeg-turbo exact DCT and upsampling, else Pillow"
RESIZE = "torchvision bicubic antialias uint8"
JPEG_QUALITY = 95
JPEG_SUBSAMPLING = "420"
Image.init()  # else only some of these are known
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
MAX_PIXELS = 100_000_000  # a larger picture is a decompression bomb rather than a photograph


def decode_image(data: bytes) -> Pixels:
    """Decode a source picture of any common format to (H, W, 3) uint8 RGB; EXIF orientation is ignored.

    Raises SourceError for what cannot be decoded whole.
    """
    try:
        return _decode_jpeg(data)
    except ValueError:
        return _decode_by_pillow(data)


def encode_view(pixels: Pixels, view_format: ViewFormat) -> bytes:
    """Encode a crop (S, S, 3) uint8 as a member of a view tar."""
    if view_format == "raw":
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        return buffer.getvalue()
    return bytes(simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING, fastdct=False))


def decode_view(data: bytes, view_format: ViewFormat) -> Pixels:
    """Decode a member of a view tar to (S, S, 3) uint8; raises ValueError for anything else."""
    if view_format == "raw":
        return _decode_raw(data)
    return _decode_jpeg(data)


def resize_crop(pixels: Pixels, size: int) -> Pixels:
    """Resize (H, W, 3) uint8 to (size, size, 3) uint8, bicubic with antialiasing."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    resized = resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())


def _decode_raw(data: bytes) -> Pixels:
    pixels: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an array {pixels.shape} of {pixels.dtype} is no picture")
    return pixels


def _decode_jpeg(data: bytes) -> Pixels:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    _refuse_bomb(height, width)
    pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    return pixels


def _decode_by_pillow(data: bytes) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            _refuse_bomb(image.height, image.width)
            return np.array(image.convert("RGB"))  # a writable copy, as torch wants
    except UnidentifiedImageError:  # its own text has the address of an object
        raise SourceError("cannot be decoded (no picture of a known format)") from None
    except (SourceError, MemoryError):
        raise
    except Exception as error:  # on hostile files Pillow raises almost anything
        raise SourceError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise SourceError(f"has {width} x {height} pixels, more than the {MAX_PIXELS} that are accepted")
