"""The markup of reasoning: detection of a model's format, and splitting of completions with tags.

A model's format follows from its chat template and vocabulary, never from its name. ``domain.formats.output_parser``
splits formats with message headers.
"""

import enum
from collections.abc import Container

import attrs

from mlxk.domain.formats.scanner import MarkerScanner
from mlxk.domain.generation.request import ReasoningDelta, TextDelta


class ReasoningStyle(enum.Enum):
    """How reasoning is separated from the answer."""

    TAGS = "tags"
    """Reasoning is enclosed in two tags, before the answer."""
    CHANNELS = "channels"
    """Every message has a header that marks it as reasoning, tool call or answer."""


@attrs.frozen
class ReasoningFormat:
    """A model's markup of reasoning."""

    style: ReasoningStyle
    start: str
    """The text that begins reasoning."""
    end: str
    """The text that ends reasoning."""
    structure: tuple[str, ...] = ()
    """Markers to drop from the answer."""
    answer: str = ""
    """The markup that begins the answer, after the end of the reasoning."""
    wrap: tuple[str, str] | None = None
    """Tags around the answer; they are dropped when it begins with the first one."""
    turn_ends: tuple[str, ...] = ()
    """With channels: the tokens that end a turn, not only a message."""
    marks: tuple[str, ...] = ()
    """A model uses this format if its chat template, or its vocabulary, has all of these."""

    @property
    def closing(self) -> str:
        """The text to insert so that the model ends its reasoning and answers."""
        if self.answer:
            return f"{self.end}{self.answer}"
        return f"\n{self.end}\n\n{self.wrap[0] if self.wrap is not None else ''.join(self.structure[:1])}"

    def opened_by(self, prompt_tail: str) -> bool:
        """Whether a prompt ends with the start of reasoning, written by the template."""
        return prompt_tail.rstrip().endswith(self.start)


CHANNELS = ReasoningFormat(
    ReasoningStyle.CHANNELS,
    "<|channel|>analysis<|message|>",
    "<|end|>",
    answer="<|start|>assistant<|channel|>final<|message|>",
    turn_ends=("<|return|>", "<|call|>"),
    marks=("<|channel|>", "<|message|>", "<|start|>"),
)
"""gpt-oss: the header of a message names its channel."""

RECIPIENTS = ReasoningFormat(
    ReasoningStyle.CHANNELS,
    " to=self<|message|>",
    "<|eom|>",
    answer="<|start|>assistant to=user<|message|>",
    turn_ends=("<|eot|>",),
    marks=("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
)
"""Muse: the header of a message names its recipient: the model itself, the user or a tool."""


def _tags(start: str, end: str, *structure: str, marks: tuple[str, ...] = (), answer: str = "") -> ReasoningFormat:
    return ReasoningFormat(ReasoningStyle.TAGS, start, end, structure, answer, marks=marks or (start, end))


_TAGGED = (
    _tags("<think>", "</think>"),
    _tags("<|think:start|>", "<|think:end|>"),
    _tags("<longcat_think>", "</longcat_think>"),
    _tags("<seed:think>", "</seed:think>"),
    _tags("[THINK]", "[/THINK]"),
    _tags(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
        "<|START_TEXT|>",
        "<|END_TEXT|>",
    ),
    _tags("<|channel>thought", "<channel|>", marks=("<|channel>", "<channel|>")),
    _tags(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "<|open|>response<|sep|>",
        "<|close|>response<|sep|>",
        "<|close|>message<|sep|>",
        marks=("<|open|>", "<|close|>", "<|sep|>"),
    ),
    _tags("<|inner_prefix|>", "<|inner_suffix|>"),
    _tags("<|thought_start|>", "<|thought_end|>"),
    _tags(
        "<|think|>",
        "<|end|>",
        "<|begin|>assistant",
        "<|content|>",
        answer="<|begin|>assistant<|content|>",
        marks=("<|think|>", "<|end|>", "<|begin|>", "<|content|>"),
    ),
    _tags(
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        "[END FINAL RESPONSE]",
        marks=("[BEGIN FINAL RESPONSE]", "[END FINAL RES"),
    ),
    _tags("<mm:think>", "</mm:think>"),
    _tags("<thinking>", "</thinking>"),
)

_WRAPS = {
    ("<response>", "</response>"): ("<response>", "</response>"),
    ("<answer>", "</answer>"): ("<|startoftext|>", "<|extra_0|>", "<think>"),
}
"""Tags around the answer, to the marks by which a model that uses them is detected."""

_OPENINGS = tuple(style.marks[0] for style in (CHANNELS, *_TAGGED) if style.marks[0].startswith(("<", "[")))
"""The token that begins a block of reasoning, for every format."""

_LONGEST_TOKEN = 64
"""Most characters of a token that ends a turn."""


def supports_reasoning(template: str) -> bool:
    """Whether the text of the chat templates has markup of reasoning, or a parameter that switches reasoning on."""
    named = any(marker in template for marker in ("enable_thinking", *_OPENINGS))
    return named or detect_reasoning(template, ()) is not None


CALL_ENDS = ("<|eom_id|>", "<|calls|>")
"""Tokens that end a turn with tool calls (Llama 3, Solar Open)."""


def turn_end(style: ReasoningFormat | None, after_answer: str, tokens: Container[str]) -> str | None:
    """Return the token by which a chat template ends the assistant's turn.

    Args:
        style: The model's markup of reasoning.
        after_answer: The text that the template renders after an assistant's message.
        tokens: The control tokens.

    Returns:
        The token; None when there is none, or it also ends reasoning.
    """
    structure = (*style.structure, *((style.wrap or ("", ""))[1:])) if style is not None else ()
    text = after_answer.lstrip()
    while marker := next((marker for marker in structure if marker and text.startswith(marker)), None):
        text = text[len(marker) :].lstrip()
    lengths = range(min(len(text), _LONGEST_TOKEN), 0, -1)
    token = next((text[:length] for length in lengths if text[:length] in tokens), None)
    return None if style is not None and token == style.end else token


def detect_reasoning(template: str | None, vocabulary: Container[str]) -> ReasoningFormat | None:
    """Detect a model's markup of reasoning.

    A format counts when the chat template has both tags, or when both are tokens of the vocabulary; the chat template
    has precedence.

    Args:
        template: The text of the chat template; None when the model has none.
        vocabulary: Every token, added ones included.

    Returns:
        The format, or None when there is no known markup.
    """
    text = template or ""
    for style in (CHANNELS, RECIPIENTS):
        if all(mark in text or mark in vocabulary for mark in style.marks):
            return style
    in_template = (style for style in _TAGGED if style.end in text and _starts_in(style, text) and _all_in(style, text))
    in_vocabulary = (style for style in _TAGGED if _all_in(style, vocabulary))
    detected = next(in_template, None) or next(in_vocabulary, None)
    wrap = next((pair for pair, marks in _WRAPS.items() if all(mark in text for mark in marks)), None)
    return attrs.evolve(detected, wrap=wrap) if detected is not None and wrap is not None else detected


def _starts_in(style: ReasoningFormat, template: str) -> bool:
    """Whether a template has the start of reasoning; a start in plain words is the model's, not the template's."""
    return style.start in template or not style.start.startswith(("<", "["))


def _all_in(style: ReasoningFormat, source: Container[str]) -> bool:
    return all(mark in source for mark in style.marks)


class ReasoningSplitter:
    """Splits a completion with reasoning tags into reasoning and text.

    A block of reasoning opens only before the first visible text, so an answer that mentions a tag keeps it. White
    space before a block, and newlines directly after its start, before its end and after its end, are dropped, as they
    belong to the tags. A block that is never closed is reasoning to the end. An end tag at the start of a line is
    dropped even where no block was open. Everything else is returned unchanged.

    Args:
        style: A format with tags.
        opened: Whether the prompt has opened a block.
    """

    def __init__(self, style: ReasoningFormat, opened: bool = False) -> None:
        self._format = style
        self._wrap = style.wrap or ("", "")
        self._scanner = MarkerScanner(filter(None, {style.start, style.end, *style.structure, *self._wrap}))
        self._thinking = opened
        self._blocks = int(opened)
        """Number of blocks so far."""
        self._answering = False
        self._wrapped = False
        self._blank = ""
        """White space held back before the first visible text, or at the end of a wrapped answer."""
        self._after_block = False
        self._thought = False
        """Whether the current block has any text yet."""
        self._newlines = 0
        """Number of newlines held back in the block; they are dropped if its end follows."""
        self._line_begins = True
        self._after_stray_end = False

    @property
    def thinking(self) -> bool:
        """Whether a block of reasoning is open."""
        return self._thinking

    @property
    def past_reasoning(self) -> bool:
        """Whether visible text has been returned, so that no block can open any more."""
        return self._answering

    @property
    def passes_unchanged(self) -> bool:
        """Whether all further text is part of the answer, unchanged."""
        settled = self._blocks > 0 and not self._wrapped and not self._after_stray_end
        return self._answering and settled and not self._format.structure

    def feed(self, text: str) -> list[TextDelta | ReasoningDelta]:
        """Parse the next chunk of text and return the deltas that are certain so far."""
        deltas: list[TextDelta | ReasoningDelta] = []
        for chunk in self._scanner.feed(text):
            self._take(chunk.text, chunk.marker, deltas)
        return deltas

    def flush(self) -> list[TextDelta | ReasoningDelta]:
        """Return the deltas of the buffered remainder, at the end of the text."""
        deltas: list[TextDelta | ReasoningDelta] = []
        for chunk in self._scanner.flush():
            self._take(chunk.text, chunk.marker, deltas)
        if self._thinking and self._newlines and self._thought:
            deltas.append(ReasoningDelta("\n" * self._newlines))
        if self._blank:
            deltas.append(TextDelta(self._blank))
        self._newlines, self._blank = 0, ""
        return deltas

    def _take(self, text: str, marker: bool, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if self._thinking:
            self._think(text, marker and text == self._format.end, deltas)
        elif marker and text in self._format.structure:
            return
        elif self._answering:
            self._answer(text, marker, deltas)
        elif marker and text == self._wrap[0]:
            self._wrapped, self._after_block = True, True
        elif marker and text in {self._format.start, self._format.end}:
            self._thinking = text == self._format.start
            self._blocks += 1
            self._thought, self._after_block, self._blank = False, True, ""
        else:
            self._begin(text, deltas)

    def _think(self, text: str, ends: bool, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if ends:
            self._thinking, self._newlines = False, 0
            self._after_block = True
            return
        if not self._thought:
            # A model may repeat the start tag that the template has written.
            text = "" if text == self._format.start else text.lstrip("\n")
        visible = text.rstrip("\n")
        if visible:
            deltas.append(ReasoningDelta("\n" * self._newlines + visible))
            self._thought, self._newlines = True, 0
        if self._thought:
            self._newlines += len(text) - len(visible)

    def _begin(self, text: str, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if self._after_block and not self._blank:
            text = text.lstrip("\n")
        self._blank += text
        if text and not text.isspace():
            self._answering = True
            text, self._blank = self._blank, ""
            self._answer(text, False, deltas)

    def _answer(self, text: str, marker: bool, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if marker and self._wrapped and text == self._wrap[1]:
            self._wrapped, self._blank = False, ""
            return
        if marker and text == self._format.end and not self._blocks and self._line_begins:
            self._blocks, self._after_stray_end = 1, True
            return
        if self._after_stray_end and text:
            text = text.lstrip("\n")
            self._after_stray_end = not text
        text = self._blank + text
        self._line_begins = text.endswith("\n") if text else self._line_begins
        visible = text.rstrip("\n") if self._wrapped else text
        self._blank = text[len(visible) :]
        if visible:
            deltas.append(TextDelta(visible))
