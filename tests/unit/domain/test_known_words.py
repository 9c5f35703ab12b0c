"""Closed lists of what files and models write: every member is known, and one that is nearly the same is not."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.formats.chat_templates import insertion_format
from mlxk.domain.formats.reasoning import detect_reasoning
from mlxk.domain.formats.tool_arguments import allowed_types
from mlxk.domain.generation.media import RECORDINGS, SIGNATURE_BYTES, ImageFormat, format_of


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"II*\0", "TIFF, or a camera's raw format"),
        (b"MM\0*", "TIFF, or a camera's raw format"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"BM", "BMP"),
        (b"<svg", "SVG"),
        (b"<?xml", "SVG or another kind of XML"),
        (b"\xef\xbb\xbf<svg", "SVG"),
        (b"\xef\xbb\xbf<?xml", "SVG or another kind of XML"),
        (b"\0\0\x01\0", "ICO"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "PSD"),
        (b"%PDF", "PDF"),
    ],
)
def test_every_foreign_format_of_images_is_refused_by_its_name(beginning: bytes, name: str) -> None:
    with pytest.raises(ValidationError, match=f"^a: is in {name}, which is not supported$") as refusal:
        format_of(beginning.ljust(SIGNATURE_BYTES, b"x"), "a")
    assert str(refusal.value.hint).endswith("Known formats: JPEG, PNG, GIF, WEBP, HEIC, AVIF")
    with pytest.raises(ValidationError, match=r"^a: is not an image of a known format$"):
        format_of(b"y" + beginning.ljust(SIGNATURE_BYTES, b"x"), "a")


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        (b"\xff\xd8\xff", ImageFormat.JPEG),
        (b"\x89PNG\r\n\x1a\n", ImageFormat.PNG),
        (b"GIF87a", ImageFormat.GIF),
        (b"GIF89a", ImageFormat.GIF),
        (b"RIFF\0\0\0\0WEBP", ImageFormat.WEBP),
        (b"RIFF\0\0\0\0WAVE", None),
        *((b"\0\0\0\x18ftyp" + brand, ImageFormat.HEIC) for brand in (b"heic", b"heix", b"heim", b"heis")),
        *((b"\0\0\0\x18ftyp" + brand, ImageFormat.HEIC) for brand in (b"hevc", b"hevx", b"mif1", b"msf1")),
        *((b"\0\0\0\x18ftyp" + brand, ImageFormat.AVIF) for brand in (b"avif", b"avis")),
        (b"\0\0\0\x18ftypisom", None),
        (b"", None),
    ],
)
def test_every_beginning_of_an_image_is_known(beginning: bytes, found: ImageFormat | None) -> None:
    assert ImageFormat.of(beginning) is found


def test_sound_comes_under_every_type_of_it() -> None:
    assert RECORDINGS.types == ("audio/", "video/", "application/ogg")


@pytest.mark.parametrize(
    ("tokens", "prompt"),
    [
        (("<fim-prefix>", "<fim-suffix>", "<fim-middle>"), "<fim-prefix>A<fim-suffix>B<fim-middle>"),
        (
            ("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>"),
            "<[fim-suffix]>B<[fim-prefix]>A<[fim-middle]>",
        ),
    ],
)
def test_text_is_inserted_with_every_family_s_tokens_and_needs_all_of_them(
    tokens: tuple[str, ...], prompt: str
) -> None:
    found = insertion_format({*tokens}.__contains__)
    assert found is not None
    assert found.prompt("A", "B") == prompt
    for missing in tokens:
        assert insertion_format({*tokens, "<s>"}.difference([missing]).__contains__) is None


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        (("<|inner_prefix|>", "<|inner_suffix|>"), "<|inner_prefix|>"),
        (("<|thought_start|>", "<|thought_end|>"), "<|thought_start|>"),
        (("<|think|>", "<|end|>", "<|begin|>", "<|content|>"), "<|think|>"),
        (("<mm:think>", "</mm:think>"), "<mm:think>"),
    ],
)
def test_further_formats_of_reasoning_need_each_of_their_tokens(tokens: tuple[str, ...], start: str) -> None:
    found = detect_reasoning(None, set(tokens))
    assert (found and found.start) == start
    for missing in tokens:
        assert detect_reasoning(None, set(tokens) - {missing}) is None


@pytest.mark.parametrize(
    ("marks", "wrap"),
    [
        (("<response>", "</response>"), ("<response>", "</response>")),
        (("<|startoftext|>", "<|extra_0|>", "<think>"), ("<answer>", "</answer>")),
    ],
)
def test_tags_around_an_answer_are_told_by_all_their_marks(marks: tuple[str, ...], wrap: tuple[str, str]) -> None:
    template = " ".join(("<think>", "</think>", *marks))
    found = detect_reasoning(template, ())
    assert (found and found.wrap) == wrap
    for missing in marks:
        if missing != "<think>":
            without = detect_reasoning(" ".join(each for each in template.split() if each != missing), ())
            assert without is not None
            assert without.wrap != wrap


def test_references_of_a_schema_are_followed_so_far_and_no_further() -> None:
    def chain(length: int) -> frozenset[str]:
        steps = {str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(length)}
        return allowed_types({"$ref": "#/$defs/0"}, {"$defs": {**steps, str(length): {"type": "integer"}}})

    assert chain(30) == {"integer"}
    assert chain(31) == chain(100_000) == frozenset()
    nested: object = {"type": "integer"}
    for _ in range(31):
        nested = {"anyOf": [nested]}
    assert allowed_types(nested) == {"integer"}
    assert allowed_types({"anyOf": [nested]}) == frozenset()
