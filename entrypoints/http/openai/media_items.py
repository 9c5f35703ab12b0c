"""Texts and images of requests for vectors and scores, in the shapes in which clients of other servers send them.

A text is a string or ``{"text": …}``. An image is ``{"image": …}`` as Jina takes it, ``{"image_url": …}`` or a part
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
    """Whether a text is an image: a text that is none begins otherwise."""
    return _IMAGE_URL.match(text) is not None


def read_item(value: object, path: str, media: PartReader) -> str | ImageInput:
    """Return the text or the image of an item.

    Args:
        value: As the client sent it.
        path: The field.
        media: Reads images.

    Raises:
        ValidationError: It is neither, holds nothing or several images, or its image cannot be had.
    """
    if isinstance(value, str) and not is_image_url(value):
        return value
    texts: list[str] = []
    images: list[EncodedImage] = []
    for found in _parts(value, path, media):
        (texts if isinstance(found, str) else images).append(found)  # type: ignore[arg-type]
    if len(images) > 1:
        raise ValidationError.in_field(path, f"takes one image (got {len(images)})")
    text = "\n".join(texts)
    return ImageInput(images[0], text) if images else text


def read_messages(messages: object, path: str, media: PartReader) -> str | ImageInput:
    """Return the only item of a conversation, which one message of the user has, as vLLM takes it.

    Raises:
        ValidationError: It has several messages, or what ``read_item`` refuses.
    """
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise ValidationError.in_field(path, "must have one message, of the user, with what is to be embedded")
    message: dict[str, Any] = messages[0]
    if message.get("role", "user") != "user":
        raise ValidationError.in_field(f"{path}[0].role", "must be user")
    return read_item({"content": message.get("content")}, f"{path}[0]", media)


def _parts(value: object, path: str, media: PartReader) -> Iterator[str | EncodedImage]:
    """Yield the texts and images of an item in their order."""
    if isinstance(value, str):
        yield media.image(value, path) if is_image_url(value) else value
        return
    if not isinstance(value, dict):
        raise ValidationError.in_field(path, _SHAPES)
    content = value.get("content")
    if isinstance(content, list) and content:
        for index, each in enumerate(content):
            yield from _parts(each, f"{path}.content[{index}]", media)
        return
    known = [key for key in (*IMAGE_KEYS, "text") if value.get(key) is not None]
    if "url" in known and len(known) > 1:
        known.remove("url")  # where a text or an image is from
    if isinstance(content, str):
        yield content
    elif not known:
        raise ValidationError.in_field(path, _SHAPES)
    for key in known:
        yield _text(value[key], f"{path}.text") if key == "text" else _image(value[key], f"{path}.{key}", media)


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise ValidationError.in_field(path, "must be a string")
    return value


def _image(value: object, path: str, media: PartReader) -> EncodedImage:
    """Return an image: of a reference, of an object with one, or of plain base64."""
    if isinstance(value, dict):
        value, path = value.get("url"), f"{path}.url"
    if not isinstance(value, str):
        raise ValidationError.in_field(path, "must be a data URL of an image")
    return media.image(value, path)
