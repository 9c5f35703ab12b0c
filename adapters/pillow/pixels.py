"""The pixels of an image, by Pillow."""

from PIL import ExifTags, Image

from mlxk.adapters.pillow.opening import DAMAGED, damaged, open_image, quietly
from mlxk.domain.media import DecodedImage, EncodedImage

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
