"""Reasoning: the part of an answer that the model thinks and does not say.

Owns which formats there are, how a model's format is told from its chat template and vocabulary (never from its name),
and the splitting of tagged formats, fed piece by piece. Channelled answers are split in ``domain.formats.harmony``.
"""

import enum
from collections.abc import Container

import attrs

from mlxk.domain.formats.scanner import MarkerScanner
from mlxk.domain.generation.request import ReasoningDelta, TextDelta


class ReasoningStyle(enum.Enum):
    """How thought and answer are told apart."""

    TAGS = "tags"
    """Thought stands between two tags, before the answer."""
    CHANNELS = "channels"
    """Every message names its channel (gpt-oss): analysis is thought, final is the answer."""


@attrs.frozen
class ReasoningFormat:
    """How one model marks its reasoning."""

    style: ReasoningStyle
    start: str
    end: str
    structure: tuple[str, ...] = ()
    """Markers around the answer itself, which are no part of it."""

    @property
    def closing(self) -> str:
        """What to make the model say so that it stops thinking and answers."""
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
"""The tokens of the marks that are more than one."""


def _tokens(style: ReasoningFormat) -> tuple[str, ...]:
    return _TOKENS.get(style.start, (style.start, style.end))


OPENINGS = tuple(_tokens(style)[0] for style in (CHANNELS, *_TAGGED))
"""The first token of what opens a block of reasoning, in every format."""


def detect_reasoning(template: str | None, vocabulary: Container[str]) -> ReasoningFormat | None:
    """Tell how a model marks its reasoning.

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


class ReasoningSplitter:
    """Splits a tagged answer into reasoning and text.

    Reasoning opens only where nothing visible has been said yet, so an answer that talks about a tag keeps it. White
    space before a block and the newlines next to its tags belong to the tags, as templates write them: the newlines
    directly after its start, before its end and after its end are dropped. A block that is never closed is reasoning to
    the end. Everything else comes out unchanged.

    Args:
        style: A format with tags.
        opened: Whether the prompt opened a block already.
    """

    def __init__(self, style: ReasoningFormat, opened: bool = False) -> None:
        self._format = style
        self._scanner = MarkerScanner((style.start, style.end, *style.structure))
        self._thinking = opened
        self._answering = False
        self._blank = ""
        """White space of an answer of which nothing is visible yet."""
        self._after_block = False
        self._thought = False
        """Whether the block at hand holds anything yet."""
        self._newlines = 0
        """Newlines of the block that its end would take along."""

    @property
    def thinking(self) -> bool:
        """Whether a block of reasoning is open."""
        return self._thinking

    @property
    def past_reasoning(self) -> bool:
        """Whether something visible was said, so that no block can open any more."""
        return self._answering

    def feed(self, text: str) -> list[TextDelta | ReasoningDelta]:
        """Take the next piece of text and return what is decided by now."""
        deltas: list[TextDelta | ReasoningDelta] = []
        for piece in self._scanner.feed(text):
            self._take(piece.text, piece.marker, deltas)
        return deltas

    def flush(self) -> list[TextDelta | ReasoningDelta]:
        """Return what was held back, once the text has ended."""
        deltas: list[TextDelta | ReasoningDelta] = []
        for piece in self._scanner.flush():
            self._take(piece.text, piece.marker, deltas)
        if self._thinking and self._newlines and self._thought:
            deltas.append(ReasoningDelta("\n" * self._newlines))
        if self._blank:
            deltas.append(TextDelta(self._blank))
        self._newlines, self._blank = 0, ""
        return deltas

    def _take(self, text: str, marker: bool, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if marker and text in self._format.structure and not self._thinking:
            return
        if self._thinking:
            self._think(text, marker and text == self._format.end, deltas)
        elif self._answering:
            deltas.append(TextDelta(text))
        elif marker:
            self._thinking = text == self._format.start
            self._thought, self._after_block, self._blank = False, True, ""
        else:
            self._begin(text, deltas)

    def _think(self, text: str, ends: bool, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if ends:
            self._thinking, self._newlines = False, 0
            self._after_block = True
            return
        if not self._thought:
            # A model may repeat the start that the template has written for it.
            text = "" if text == self._format.start else text.lstrip("\n")
        said = text.rstrip("\n")
        if said:
            deltas.append(ReasoningDelta("\n" * self._newlines + said))
            self._thought, self._newlines = True, 0
        if self._thought:
            self._newlines += len(text) - len(said)

    def _begin(self, text: str, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if self._after_block and not self._blank:
            text = text.lstrip("\n")
        self._blank += text
        if text and not text.isspace():
            deltas.append(TextDelta(self._blank))
            self._answering, self._blank = True, ""
