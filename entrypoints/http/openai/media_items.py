"""Items of embedding and rerank requests, texts and images, in the shapes that clients of various servers send.

A text is a string or ``{"text": …}``. An image is ``{"image": …}`` as in Jina's API, ``{"image_url": …}`` or a part
with a ``type`` as in conversations, or a string that is a data URL. ``{"content": […]}`` has parts of both.
"""

import re
from collections.abc import Iterator
from typing import Any

from mlxk.domain.embedding import ImageInput
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import EncodedImage
from mlxk.entrypoints.http.requests.media import PartReader

IMAGE_KEYS = ("image", "image_url", "url")
_SHAPES = 'must be a string, or an object with a "text", an "image" or both'
_IMAGE_URL = re.compile(r"\s*data:image/", re.IGNORECASE)


def is_image_url(text: str) -> bool:
    """Whether a string is the data URL of an image."""
    return _IMAGE_URL.match(text) is not None


def read_item(value: object, path: str, media: PartReader) -> str | ImageInput:
    """Return an item as its text, or as its image with the text beside it.

    Args:
        value: The JSON value of the item.
        path: Its field.
        media: Reads images.

    Raises:
        ValidationError: The item is neither, is empty, has several images, or its image cannot be read.
    """
    if isinstance(value, str) and not is_image_url(value):
        return value
    texts: list[str] = []
    images: list[EncodedImage] = []
    for part in _parts(value, path, media):
        (texts if isinstance(part, str) else images).append(part)  # type: ignore[arg-type]
    if len(images) > 1:
        raise ValidationError.in_field(path, f"takes one image (got {len(images)})")
    text = "\n".join(texts)
    return ImageInput(images[0], text) if images else text


def read_messages(messages: object, path: str, media: PartReader) -> str | ImageInput:
    """Return the item in a conversation of one user message, a form that vLLM accepts.

    Raises:
        ValidationError: There are other messages, or as ``read_item``.
    """
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise ValidationError.in_field(path, "must have one message, of the user, with what is to be embedded")
    message: dict[str, Any] = messages[0]
    if message.get("role", "user") != "user":
        raise ValidationError.in_field(f"{path}[0].role", "must be user")
    return read_item({"content": message.get("content")}, f"{path}[0]", media)


def _parts(value: object, path: str, media: PartReader) -> Iterator[str | EncodedImage]:
    """Yield the texts and images of an item in order."""
    if isinstance(value, str):
        yield media.image(value, path) if is_image_url(value) else value
        return
    if not isinstance(value, dict):
        raise ValidationError.in_field(path, _SHAPES)
    content = value.get("content")
    if isinstance(content, list) and content:
        for index, part in enumerate(content):
            yield from _parts(part, f"{path}.content[{index}]", media)
        return
    keys = [key for key in (*IMAGE_KEYS, "text") if value.get(key) is not None]
    if "url" in keys and len(keys) > 1:
        keys.remove("url")  # beside a text or an image it is the page that they are from
    if isinstance(content, str):
        yield content
    elif not keys:
        raise ValidationError.in_field(path, _SHAPES)
    for key in keys:
        yield _text(value[key], f"{path}.text") if key == "text" else _image(value[key], f"{path}.{key}", media)


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise ValidationError.in_field(path, "must be a string")
    return value


def _image(value: object, path: str, media: PartReader) -> EncodedImage:
    """Return an image from a data URL, an address, a path or base64, or an object with one of these as ``url``."""
    if isinstance(value, dict):
        value, path = value.get("url"), f"{path}.url"
    if not isinstance(value, str):
        raise ValidationError.in_field(path, "must be a data URL of an image")
    return media.image(value, path)
