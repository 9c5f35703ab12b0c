"""The markup of reasoning, what chat templates support, and which reasoning format a model uses.

A model's format follows from its chat template and vocabulary, never from its name. ``domain.formats.output_parser``
splits completions accordingly.
"""

import enum
from collections.abc import Container

import attrs


class ReasoningStyle(enum.Enum):
    """How reasoning and answer are separated."""

    TAGS = "tags"
    """Reasoning is enclosed in two tags, before the answer."""
    CHANNELS = "channels"
    """Every message names its channel (gpt-oss): analysis is reasoning, final is the answer."""


@attrs.frozen
class ReasoningFormat:
    """How one model marks its reasoning."""

    style: ReasoningStyle
    start: str
    end: str
    structure: tuple[str, ...] = ()
    """Markers around the answer that are not part of it."""

    @property
    def closing(self) -> str:
        """The text that makes the model end its reasoning and answer."""
        if self.style is ReasoningStyle.CHANNELS:
            return f"{self.end}<|start|>assistant<|channel|>final<|message|>"
        return f"\n{self.end}\n\n" + "".join(self.structure[:1])

    def opened_by(self, prompt_tail: str) -> bool:
        """Whether a prompt ends inside a block of reasoning, opened by the template for the model to fill."""
        return prompt_tail.rstrip().endswith(self.start)


CHANNELS = ReasoningFormat(ReasoningStyle.CHANNELS, "<|channel|>analysis<|message|>", "<|end|>")
"""gpt-oss."""


def _tags(start: str, end: str, *structure: str) -> ReasoningFormat:
    return ReasoningFormat(ReasoningStyle.TAGS, start, end, structure)


_TAGGED = (
    _tags("<think>", "</think>"),
    _tags("<|think:start|>", "<|think:end|>"),
    _tags("<longcat_think>", "</longcat_think>"),
    _tags("<seed:think>", "</seed:think>"),
    _tags("[THINK]", "[/THINK]"),
    _tags("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    _tags("<|channel>thought", "<channel|>"),
    _tags(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "<|open|>response<|sep|>",
        "<|close|>response<|sep|>",
        "<|close|>message<|sep|>",
    ),
    _tags("<thinking>", "</thinking>"),
)

_TOKENS = {
    CHANNELS.start: ("<|channel|>", "<|message|>", "<|start|>"),
    "<|channel>thought": ("<|channel>", "<channel|>"),
    "<|open|>think<|sep|>": ("<|open|>", "<|close|>", "<|sep|>"),
}
"""The tokens of the markers that consist of several."""


def _tokens(style: ReasoningFormat) -> tuple[str, ...]:
    return _TOKENS.get(style.start, (style.start, style.end))


_OPENINGS = tuple(_tokens(style)[0] for style in (CHANNELS, *_TAGGED))
"""The token that begins a block of reasoning, for every format."""


_TOOL_MARKERS = ("tools", "tool_call")
_REASONING_MARKERS = ("enable_thinking", *_OPENINGS)


def supports_tools(template: str) -> bool:
    """Whether the text of the chat templates renders tool definitions."""
    return any(marker in template for marker in _TOOL_MARKERS)


def supports_reasoning(template: str) -> bool:
    """Whether the text of the chat templates has reasoning, marked or switched on by a parameter."""
    return any(marker in template for marker in _REASONING_MARKERS)


def detect_reasoning(template: str | None, vocabulary: Container[str]) -> ReasoningFormat | None:
    """Detect how a model marks its reasoning.

    A format counts when its chat template writes both its tags, or when both are tokens of their own; what the template
    writes goes first.

    Args:
        template: The text of the chat template; None when the model has none.
        vocabulary: Every token, added ones included.

    Returns:
        The format, or None when the model marks no reasoning.
    """
    text = template or ""
    if all(token in text or token in vocabulary for token in _tokens(CHANNELS)):
        return CHANNELS
    written = (each for each in _TAGGED if each.start in text and each.end in text)
    known = (each for each in _TAGGED if all(token in vocabulary for token in _tokens(each)))
    return next(written, None) or next(known, None)
