"""One running answer on the owner thread: its tokens, its text and its end.

Turns tokens into text, has it split and cut by the domain's stream parsing, and counts; which token comes next is for
``batch``, when it comes is for ``scheduler``.
"""

from collections.abc import Sequence

import attrs

from mlxk.adapters.mlx.engine.text_stream import EventSink
from mlxk.adapters.mlx.prompting.detokenizer import Detokenizer
from mlxk.application.ports.clock import Clock
from mlxk.domain.errors import MlxkError
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.generation.request import (
    AnswerDelta,
    Finished,
    FinishReason,
    GenerationSettings,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)


@attrs.frozen
class AnswerLimits:
    """When an answer ends at the latest."""

    max_tokens: int
    """Tokens to generate at most; the context window is respected already."""
    end_tokens: frozenset[int]
    """Tokens with which the model ends its turn."""


class Answer:
    """The state of one answer.

    Args:
        prompt: Token ids, at least one.
        settings: Validated, with every None filled.
        limits: When it ends.
        detokenizer: Fresh.
        parser: Fresh; None when there is nothing to find in the text.
        only_opening: Whether the parser looks for nothing once the answer proper has begun, and can then be spared.
        sink: Where its text goes.
        clock: For the timings.
    """

    def __init__(  # noqa: PLR0913 - each is a collaborator of its own
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        limits: AnswerLimits,
        detokenizer: Detokenizer,
        parser: OutputParser | None,
        sink: EventSink,
        clock: Clock,
        only_opening: bool = False,
    ) -> None:
        self.prompt = list(prompt)
        self.settings = settings
        self.limits = limits
        self.sink = sink
        self.generated: list[int] = []
        self.cached_tokens = 0
        self.load_seconds = 0.0
        self.notes: list[str] = []
        self.ended = False
        self._detokenizer = detokenizer
        self._parser = parser
        self._only_opening = only_opening
        self._ends = frozenset() if settings.ignore_eos else limits.end_tokens
        self._pending: list[TokenLogprob] = []
        self._clock = clock
        self._queued_at = clock.monotonic()
        self._started_at: float | None = None
        self._first_at: float | None = None

    def started(self, cached_tokens: int) -> None:
        """Note that computing the prompt begins, and how much of it was there already; a new start changes nothing."""
        if self._started_at is not None:
            return
        self._started_at = self._clock.monotonic()
        self.cached_tokens = cached_tokens

    def accept(self, token: int, logprob: TokenLogprob | None = None) -> FinishReason | None:
        """Take the next token; return why the answer ends with it, or None when it goes on."""
        if self._first_at is None:
            self._first_at = self._clock.monotonic()
        self.generated.append(token)
        if token in self._ends:
            return FinishReason.STOP
        if logprob is not None:
            self._pending.append(logprob)
        text = self._detokenizer.feed(token)
        if self._parser is None:
            self._emit_text(text)
        elif text and self._parse(self._parser, text):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.generated) >= self.limits.max_tokens else None

    def finish(self, reason: FinishReason) -> None:
        """End the answer; later calls do nothing."""
        if self.ended:
            return
        reason = self._flush(reason)
        limit = self.limits.max_tokens if reason is FinishReason.LENGTH else None
        usage = Usage(len(self.prompt), len(self.generated), self.cached_tokens)
        self.sink.put(Finished(reason, usage, self._timings(), limit, tuple(self.notes)))
        self.ended = True

    def fail(self, error: MlxkError) -> None:
        """End the answer with an error; later calls do nothing."""
        if not self.ended:
            self.ended = True
            self.sink.put(error)

    def _flush(self, reason: FinishReason) -> FinishReason:
        text = self._detokenizer.flush()
        parser = self._parser
        if parser is None:
            self._emit_text(text)
            return reason
        self._emit(parser.feed(text))
        self._emit(parser.flush(complete=reason is FinishReason.STOP and not parser.stopped))
        return FinishReason.STOP if parser.stopped else reason

    def _parse(self, parser: OutputParser, text: str) -> bool:
        """Pass text through the parser; return whether a stop string was found in it."""
        if self._pending and parser.thinking:
            self._pending.clear()
        deltas = parser.feed(text)
        self._emit(deltas)
        if self._only_opening and parser.past_reasoning:
            self._emit(parser.flush())
            self._parser = None
        return parser.stopped

    def _emit(self, deltas: Sequence[AnswerDelta]) -> None:
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self._emit_text(delta.text)
            else:
                self._pending.clear()
                self.sink.put(delta)

    def _emit_text(self, text: str) -> None:
        if text and self._pending:
            self.sink.put(TextDelta(text, tuple(self._pending)))
            self._pending.clear()
        elif text:
            self.sink.put(text)

    def _timings(self) -> Timings:
        now = self._clock.monotonic()
        started = now if self._started_at is None else self._started_at
        first = now if self._first_at is None else self._first_at
        return Timings(self.load_seconds, first - started, now - first, started - self._queued_at)
