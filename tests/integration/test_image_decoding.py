"""Decoding with Pillow: orientations, modes, frames, limits, and two thousand files that mean no good."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from mlxk.adapters.pillow import PillowImageReader
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.generation.media import MAX_IMAGE_PIXELS, EncodedImage

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "HEIF")
LOSSLESS = {"WEBP": {"lossless": True}, "HEIF": {"quality": -1}}
RED, GREEN, BLUE, WHITE = (250, 10, 10), (10, 250, 10), (10, 10, 250), (255, 255, 255)


def corners() -> Image.Image:
    """Return a picture that looks different from every side: its corners are red, green, blue and white."""
    image = Image.new("RGB", (48, 32), (90, 90, 90))
    for place, colour in zip(((0, 0), (32, 0), (0, 16), (32, 16)), (RED, GREEN, BLUE, WHITE), strict=True):
        image.paste(colour, (*place, place[0] + 16, place[1] + 16))
    return image


def encoded(image: Image.Image, form: str, **options: Any) -> EncodedImage:
    """Return an image in a format."""
    if form == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, form, **{**LOSSLESS.get(form, {}), **options})
    return EncodedImage.of(buffer.getvalue(), "test", f"a.{form.lower()}")


def pixels(image: EncodedImage) -> np.ndarray[Any, Any]:
    """Return the decoded colours, shape [rows, columns, 3]."""
    found = PillowImageReader().decode(image)
    return np.frombuffer(found.pixels, np.uint8).reshape(found.height, found.width, 3)


def colours_of_corners(image: EncodedImage) -> list[tuple[int, ...]]:
    """Return which of the four colours each corner has, clockwise from the top left."""
    seen = pixels(image).astype(int)
    height, width = seen.shape[:2]
    found = [seen[6, 6], seen[6, width - 7], seen[height - 7, width - 7], seen[height - 7, 6]]
    known = (RED, GREEN, BLUE, WHITE)
    return [min(known, key=lambda colour: float(np.abs(np.array(colour) - each).sum())) for each in found]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_decoded(form: str) -> None:
    assert pixels(encoded(corners(), form)).shape == (32, 48, 3)
    assert colours_of_corners(encoded(corners(), form)) == [RED, GREEN, WHITE, BLUE]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_an_image_is_seen_upright_however_the_camera_was_held(
    form: str, orientation: int, turn: Image.Transpose | None
) -> None:
    held = corners() if turn is None else corners().transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    photo = encoded(held, form, exif=exif.tobytes())
    assert pixels(photo).shape == (32, 48, 3)
    assert colours_of_corners(photo) == [RED, GREEN, WHITE, BLUE]


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("has_exif", [False, True])
def test_the_orientation_of_xmp_alone_turns_nothing(form: str, has_exif: bool) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Apple"
    options: dict[str, Any] = {"exif": exif} if has_exif else {}
    if form == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    else:
        options["xmp"] = XMP
    image = encoded(corners(), form, **options)
    assert b"tiff:Orientation" in image.data
    assert pixels(image).shape == pixels(encoded(corners(), form)).shape


def test_a_transparent_grey_of_sixteen_bits_is_white() -> None:
    values = np.array([[0, 40_000], [0x1234, 65_535]], np.uint16)
    image = encoded(Image.fromarray(values), "PNG", transparency=0x1234)
    assert pixels(image)[..., 0].tolist() == [[0, 156], [255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_eight_bits_a_colour(mode: str) -> None:
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    grey = Image.new("L", (8, 8), 255)
    image = Image.fromarray(np.full((8, 8), 65535, np.uint16)) if mode == "I;16" else grey.convert("RGB").convert(mode)
    assert pixels(encoded(image, form)).min() >= 250


def test_sixteen_bits_keep_their_greys() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    seen = pixels(encoded(Image.fromarray(ramp), "PNG"))[0, :, 0].astype(int)
    assert abs(seen[32] - 129) <= 2
    assert (np.diff(seen) >= 0).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF"])
def test_transparent_parts_are_seen_on_white(form: str) -> None:
    glass = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert pixels(encoded(glass, form)).min() >= 250


def test_the_first_frame_of_an_animation_is_seen() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    for form in ("GIF", "WEBP"):
        moving = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert pixels(moving)[4, 4, 0] > 200


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    assert MAX_IMAGE_PIXELS == 8_000 * 8_000
    with pytest.raises(ValidationError, match=r"has too many pixels \(8001 by 8000\); at most 64 million are taken"):
        PillowImageReader().decode(png_header(8_001, 8_000))
    with pytest.raises(ValidationError, match=r"'bomb\.png' has too many pixels; at most 64 million are taken"):
        PillowImageReader().decode(png_header(30_000, 30_000))


def test_a_file_is_read_as_what_it_begins_with_whatever_it_is_called() -> None:
    image = EncodedImage.of(encoded(corners(), "PNG").data, "test", "photo.jpg")
    assert colours_of_corners(image) == [RED, GREEN, WHITE, BLUE]


def test_a_document_for_another_program_is_never_opened() -> None:
    disguised = b"\xff\xd8\xff" + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    with pytest.raises(ValidationError, match="damaged"):
        PillowImageReader().decode(EncodedImage.of(disguised, "test"))


def test_two_thousand_hostile_files_are_refused_or_decoded_and_nothing_else() -> None:
    rng, reader = random.Random(20), PillowImageReader()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    sound = [encoded(corners(), form, exif=exif.tobytes()).data for form in FORMATS if form != "GIF"]
    sound.append(encoded(corners(), "GIF").data)
    refused = 0
    for index in range(2000):
        data = damaged(rng, sound[index % len(sound)])
        try:
            image = EncodedImage.of(data, "test")
            assert reader.read_exif(image).line("Image 1")
            found = reader.decode(image)
            assert len(found.pixels) == 3 * found.width * found.height
        except MlxkError as error:
            refused += 1
            assert len(error.message) < 200
    assert 200 < refused < 2000


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return a file cut short, with bytes changed, with a piece of it repeated, or with noise behind its beginning."""
    kind, content = rng.randrange(4), bytearray(data)
    if kind == 0:
        return data[: rng.randrange(1, len(data))]
    if kind == 1:
        for _ in range(rng.randint(1, 30)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content)
    if kind == 2:
        start = rng.randrange(len(content))
        return bytes(content[:start]) + bytes(content[rng.randrange(len(content)) :]) + bytes(content[start:])
    return data[:16] + rng.randbytes(rng.randrange(400))


def png_header(width: int, height: int) -> EncodedImage:
    """Return a PNG that promises a size and holds next to nothing."""

    def part(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(bytes(100))) + part(b"IEND", b"")
    return EncodedImage.of(data, "test", "bomb.png")
