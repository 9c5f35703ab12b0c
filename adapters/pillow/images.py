"""Encoded images as pixels, by Pillow: only the plugin of the image's own format is used."""

import contextlib
import importlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image, features

from mlxk.application.ports.image_decoder import ImageDecoder
from mlxk.domain.errors import BackendNotInstalledError, ValidationError
from mlxk.domain.generation.media import MAX_IMAGE_PIXELS, DecodedImage, EncodedImage, ImageFormat

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


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation. Plugins of formats with a rotation of their own apply it, or
state it as EXIF."""

_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_WHITE = (255, 255, 255)


def decoded(image: EncodedImage) -> DecodedImage:
    """Decode an image; see the port ``ImageDecoder``."""
    with quietly(), open_image(image) as opened:
        try:
            opened.load()
            upright = _upright(opened)
            colours = _colours(upright)
            return DecodedImage(colours.width, colours.height, colours.tobytes(), image.digest)
        except DAMAGED as error:
            raise damaged(image) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except DAMAGED:  # broken EXIF says nothing about a sound image
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _colours(image: Image.Image) -> Image.Image:
    """Return the image in eight bits a colour, as seen on a white page."""
    if image.mode in _SIXTEEN_BITS:
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        page = Image.new("RGB", seen.size, _WHITE)
        page.paste(seen, mask=seen.getchannel("A"))
        return page
    return image.convert("RGB")


class PillowImageDecoder(ImageDecoder):
    """Decodes what Pillow reads: JPEG, PNG, GIF, WebP and AVIF; HEIC with pillow-heif."""

    def decode(self, image: EncodedImage) -> DecodedImage:
        """Decode an image; see the port."""
        return decoded(image)
