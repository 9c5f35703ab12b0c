"""Images in the address of an image: the only addresses that are read, so that no client can make us fetch anything."""

import base64
import re

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import EncodedImage, check_size

TYPES = ("avif", "gif", "heic", "heif", "jpeg", "jpg", "png", "webp")
"""Types of images that may be announced; what an image is, its content says."""

_OPENING = re.compile(rf"data:image/({'|'.join(TYPES)})(?:;[a-z0-9=_.+-]*)*;base64,", re.IGNORECASE)
_SPACE = re.compile(r"\s+")


def read_image(url: str, path: str) -> EncodedImage:
    """Return the image in a data URL.

    Args:
        url: As the client sent it.
        path: The field it stands in.

    Raises:
        ValidationError: It is no data URL of an image, or the image is empty, too large or of no known format.
    """
    opening = _OPENING.match(url)
    if opening is None:
        raise ValidationError.in_field(path, _why_refused(url))
    encoded = _SPACE.sub("", url[opening.end() :])
    try:
        check_size(len(encoded) * 3 // 4 - encoded[-2:].count("="), path)
        return EncodedImage.of(base64.b64decode(encoded, validate=True), path)
    except ValueError as error:
        raise ValidationError.in_field(path, "is not valid base64") from error


def _why_refused(url: str) -> str:
    if not url:
        return "cannot be empty"
    if url[:5].lower() != "data:":
        return "only data URLs are supported (data:image/jpeg;base64,...); external URLs and paths are not"
    return f"must be data:image/<type>;base64,<data>, with a type of {', '.join(TYPES)}"
