"""Images as they come in: their formats, their names and their limits."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.media import (
    MAX_CHUNK,
    MAX_IMAGE_BYTES,
    MAX_IMAGES_BYTES,
    EncodedImage,
    ImageFormat,
    check_chunk,
    check_together,
)

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", ImageFormat.JPEG),
        (PNG, ImageFormat.PNG),
        (b"GIF87a", ImageFormat.GIF),
        (b"GIF89a", ImageFormat.GIF),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", ImageFormat.WEBP),
        (b"\x00\x00\x00\x18ftypheic", ImageFormat.HEIC),
        (b"\x00\x00\x00\x18ftypmif1", ImageFormat.HEIC),
        (b"\x00\x00\x00\x18ftypavif", ImageFormat.AVIF),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", None),
        (b"\x00\x00\x00\x18ftypisom", None),
        (b"%PDF-1.7", None),
        (b"<svg xmlns=", None),
        (b"", None),
    ],
)
def test_the_first_bytes_tell_the_format(beginning: bytes, found: ImageFormat | None) -> None:
    assert ImageFormat.of(beginning) is found


@given(st.binary(max_size=64))
def test_any_bytes_have_a_format_or_none(data: bytes) -> None:
    assert ImageFormat.of(data) in {None, *ImageFormat}


@pytest.mark.parametrize(
    ("beginning", "name"),
    [(b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"BM6\0", "BMP"), (b"<svg xmlns=", "SVG"), (b"<?xml version", "SVG")],
)
def test_formats_that_are_not_supported_are_named_with_what_to_do(beginning: bytes, name: str) -> None:
    with pytest.raises(ValidationError, match=f"place: is in {name}.*not supported") as caught:
        EncodedImage.of(beginning.ljust(64), "place")
    assert (caught.value.hint or "").startswith("Convert it to PNG or JPEG first.")


def test_an_image_is_named_by_its_content_and_format() -> None:
    image = EncodedImage.of(PNG, "--image", "beach.png")
    assert image.digest == hashlib.sha256(PNG).hexdigest()
    assert image.file_name == f"image_{image.digest[:8]}.png"
    assert image.title == "'beach.png'"
    assert EncodedImage.of(PNG, "url").title == image.file_name


def test_a_refusal_names_an_image_by_its_file_or_else_by_its_place() -> None:
    named = EncodedImage.of(PNG, "--image", "beach.png").refused(ValidationError, "is damaged", hint="Look.")
    assert (named.message, named.hint, named.detail) == ("'beach.png' is damaged", "Look.", None)
    sent = EncodedImage.of(PNG, "messages[0].url").refused(CapabilityError, "is odd")
    assert (sent.code, sent.message) == ("capability_not_supported", "messages[0].url: is odd")
    assert sent.detail == {"problems": [{"param": "messages[0].url", "message": "is odd"}]}


def test_the_same_image_is_the_same_wherever_it_came_from() -> None:
    assert EncodedImage.of(PNG, "a") == EncodedImage.of(PNG, "b")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "--image: 'a': the image is empty"),
        (b"hello", "--image: 'a': is not an image of a known format"),
        (PNG.ljust(MAX_IMAGE_BYTES + 1, b"\0"), "--image: 'a': the image has 20.0 MiB; at most 20 MiB are taken"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused_with_its_place(data: bytes, said: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        EncodedImage.of(data, "--image: 'a'")
    assert refusal.value.message == said
    assert [problem["param"] for problem in refusal.value.detail["problems"]] == ["--image: 'a'"]


def test_the_largest_image_is_taken() -> None:
    assert EncodedImage.of(PNG.ljust(MAX_IMAGE_BYTES, b"\0"), "x").format is ImageFormat.PNG


def test_images_are_limited_together() -> None:
    check_together([MAX_IMAGES_BYTES], "messages")
    with pytest.raises(ValidationError, match=r"messages: 2 images have 50\.0 MiB together"):
        check_together([MAX_IMAGES_BYTES, 1], "messages")


@pytest.mark.parametrize("size", range(1, MAX_CHUNK + 1))
def test_a_model_may_be_shown_up_to_five_images_together(size: int) -> None:
    check_chunk(size)


@pytest.mark.parametrize("size", [-1, 0, MAX_CHUNK + 1, 1000])
def test_other_numbers_of_images_are_refused(size: int) -> None:
    with pytest.raises(ValidationError, match=rf"chunk must be at least 1 and at most 5 \(got {size}\)"):
        check_chunk(size)
