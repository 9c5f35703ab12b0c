"""Opening an encoded image with Pillow: its own format's plugin and no other, nothing decoded yet."""

import contextlib
import importlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator

from PIL import Image, features

from mlxk.domain.errors import BackendNotInstalledError, ValidationError
from mlxk.domain.media import MAX_IMAGE_PIXELS, EncodedImage, ImageFormat

DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
"""What Pillow's plugins raise on damaged files; each has its own ideas."""

_WARNINGS = threading.Lock()
"""Held while warnings are silenced: Python restores them wrongly when two threads do so at once."""

_PLUGINS = {
    ImageFormat.JPEG: "JPEG",
    ImageFormat.PNG: "PNG",
    ImageFormat.GIF: "GIF",
    ImageFormat.WEBP: "WEBP",
    ImageFormat.HEIC: "HEIF",
    ImageFormat.AVIF: "AVIF",
}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Let Pillow's warnings about odd files not reach standard error; what matters of them is an error of ours."""
    with _WARNINGS, warnings.catch_warnings(action="ignore"):
        yield


def open_image(image: EncodedImage) -> Image.Image:
    """Open an image, inside ``quietly``; the caller closes it, as a context manager does.

    Raises:
        ValidationError: It cannot be opened, or has too many pixels.
        BackendNotInstalledError: Its format needs a package that is not installed.
    """
    _require_plugin(image)
    try:
        opened = Image.open(io.BytesIO(image.data), formats=(_PLUGINS[image.format],))
    except Image.DecompressionBombError as error:
        raise _too_large(image, "") from error
    except DAMAGED as error:
        raise damaged(image) from error
    if opened.width * opened.height > MAX_IMAGE_PIXELS:
        opened.close()
        raise _too_large(image, f" ({opened.width} by {opened.height})")
    return opened


def damaged(image: EncodedImage) -> ValidationError:
    """Return the error for an image whose data make no sense."""
    return image.refused(ValidationError, f"is damaged, or no complete {image.format.name} image")


def _too_large(image: EncodedImage, size: str) -> ValidationError:
    most = MAX_IMAGE_PIXELS // 1_000_000
    return image.refused(ValidationError, f"has too many pixels{size}; at most {most} million are taken")


def _require_plugin(image: EncodedImage) -> None:
    if image.format is ImageFormat.HEIC:
        try:
            plugin = importlib.import_module("pillow_heif")
        except ImportError as error:
            raise image.refused(
                BackendNotInstalledError,
                "is in HEIC, and reading that needs pillow-heif, which is not installed.",
                hint="Install it: pip install pillow-heif",
            ) from error
        plugin.register_heif_opener()
    elif image.format is ImageFormat.AVIF and not features.check("avif"):
        raise image.refused(
            BackendNotInstalledError,
            "is in AVIF, and reading that needs a Pillow with AVIF.",
            hint="Install it: pip install 'pillow>=11.3'",
        )
