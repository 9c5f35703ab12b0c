"""Prompts for text between a prefix and a suffix ("fill in the middle"), by the tokens of model families."""

from collections.abc import Callable

import attrs


@attrs.frozen
class InsertionFormat:
    """How a family writes such a prompt."""

    tokens: tuple[str, ...]
    """The tokens of the vocabulary that it needs."""
    pattern: str
    """The prompt, with ``{prefix}`` and ``{suffix}``."""

    def prompt(self, prefix: str, suffix: str) -> str:
        """Return the prompt whose completion belongs between two texts."""
        before, _, rest = self.pattern.partition("{prefix}")
        if "{suffix}" in before:
            return before.replace("{suffix}", suffix) + prefix + rest
        return before + prefix + rest.replace("{suffix}", suffix)


def _in_order(prefix: str, suffix: str, middle: str) -> InsertionFormat:
    return InsertionFormat((prefix, suffix, middle), f"{prefix}{{prefix}}{suffix}{{suffix}}{middle}")


INSERTION_FORMATS = (
    _in_order("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    _in_order("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _in_order("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    _in_order("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    InsertionFormat(
        ("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>"),
        "<[fim-suffix]>{suffix}<[fim-prefix]>{prefix}<[fim-middle]>",
    ),
    InsertionFormat(("[SUFFIX]", "[PREFIX]"), "[SUFFIX]{suffix}[PREFIX]{prefix}"),
)
"""The formats that are known: Qwen, Granite and CodeGemma; StarCoder; SantaCoder; DeepSeek; Seed; Codestral."""


def insertion_format(has: Callable[[str], bool]) -> InsertionFormat | None:
    """Return the format of a model; None when it has none that is known.

    Args:
        has: Whether a text is a token of the model.
    """
    return next((each for each in INSERTION_FORMATS if all(map(has, each.tokens))), None)
