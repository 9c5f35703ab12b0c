"""Text between a prefix and a suffix: the prompts of model families, whatever the texts contain."""

import pytest

from mlxk.domain.formats.chat_templates import INSERTION_FORMATS, insertion_format


@pytest.mark.parametrize(
    ("tokens", "prompt"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), "<|fim_prefix|>A<|fim_suffix|>B<|fim_middle|>"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>A<fim_suffix>B<fim_middle>"),
        (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), "<｜fim▁begin｜>A<｜fim▁hole｜>B<｜fim▁end｜>"),
        (("[SUFFIX]", "[PREFIX]", "[MIDDLE]"), "[SUFFIX]B[PREFIX]A"),
    ],
)
def test_a_family_is_known_by_its_tokens(tokens: tuple[str, ...], prompt: str) -> None:
    found = insertion_format({"<s>", *tokens}.__contains__)
    assert found is not None
    assert found.prompt("A", "B") == prompt


@pytest.mark.parametrize("tokens", [(), ("<|fim_prefix|>", "<|fim_suffix|>"), ("<fim_prefix>", "<|fim_suffix|>")])
def test_a_part_of_the_tokens_is_no_format(tokens: tuple[str, ...]) -> None:
    assert insertion_format(tokens.__contains__) is None


def test_texts_that_look_like_places_stay_as_they_are() -> None:
    for each in INSERTION_FORMATS:
        prompt = each.prompt("{suffix}{prefix}", "{prefix}{suffix}")
        assert "{suffix}{prefix}" in prompt
        assert "{prefix}{suffix}" in prompt
