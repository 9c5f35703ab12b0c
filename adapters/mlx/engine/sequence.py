"""One sequence: the state of a request in the engine, from the queue to its last event."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from mlx_lm.models.cache import TokenBuffer

from mlxk.adapters.mlx.chunk_policy import PassCosts
from mlxk.adapters.mlx.engine.prefill import Media, Prefill, cache_kind, is_plain
from mlxk.adapters.mlx.engine.prefix_cache import MediaIdentity, PrefixIdentity
from mlxk.adapters.mlx.engine.sampling import (
    LogitsProcessor,
    RandomStream,
    SamplingParameters,
    TopLogprobs,
    logits_processors,
)
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.adapters.mlx.prompting.detokenizer import Detokenizer, TokenDecoder
from mlxk.application.ports.system import Clock
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import MlxkError
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.generation.request import (
    AnswerDelta,
    Finished,
    FinishReason,
    PromptDelta,
    PromptProgress,
    TextDelta,
    Timings,
    TokenAlternative,
    TokenLogprob,
    Usage,
)
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings

_PROGRESS_SECONDS = 1.0
"""Interval of the prompt progress events; a prompt that takes less time has none."""

_MIN_LOGPROB = -9999.0
"""Reported in place of minus infinity, which JSON cannot represent."""


@attrs.frozen
class SequenceLimits:
    """When a sequence ends at the latest."""

    max_tokens: int
    """Maximum number of generated tokens; never beyond the context window."""
    end_tokens: frozenset[int]
    """The model's end-of-sequence tokens."""
    by_window: bool = False
    """Whether the context window sets ``max_tokens``, not the request."""


class SequenceOutput:
    """Converts generated tokens to events: detokenizes, parses, and attaches log probabilities.

    Args:
        detokenizer: Fresh.
        parser: Fresh; None when there is nothing to find in the text.
        stream: Receives the events.
    """

    def __init__(self, detokenizer: Detokenizer, parser: OutputParser | None, stream: QueuedTextStream) -> None:
        self.stream = stream
        self._detokenizer = detokenizer
        self._parser = parser
        self._pending: list[TokenLogprob] = []
        """Log probabilities of tokens whose text has not been emitted yet."""
        self.stop_sequence: str | None = None
        """The stop string that ended the text; set by ``flush``."""
        self.reasoning_tokens = 0
        """Reasoning tokens so far."""

    def feed(self, token: int, logprob: TokenLogprob | None = None) -> bool:
        """Emit the text that a token completes; return whether a stop string was found in it."""
        if logprob is not None:
            self._pending.append(logprob)
        text = self._detokenizer.feed(token)
        parser = self._parser
        if parser is None:
            self._emit_text(text)
            return False
        was_thinking = parser.thinking
        stopped = bool(text) and self._parse(parser, text)
        if was_thinking or parser.thinking:
            self.reasoning_tokens += 1
        return stopped

    def flush(self, reason: FinishReason) -> FinishReason:
        """Emit the buffered text of a sequence that ends; return the finish reason, which a stop string may change."""
        text = self._detokenizer.flush()
        parser = self._parser
        if parser is None:
            self._emit_text(text)
            return reason
        self._emit(parser.feed(text))
        self._emit(parser.flush(complete=reason is FinishReason.STOP and not parser.stopped))
        self.stop_sequence = parser.stop_sequence
        return FinishReason.STOP if parser.stopped else reason

    def _parse(self, parser: OutputParser, text: str) -> bool:
        if self._pending and parser.thinking:
            self._pending.clear()
        deltas = parser.feed(text)
        self._emit(deltas)
        if parser.passes_unchanged:
            self._emit(parser.flush())
            self._parser = None
        return parser.stopped

    def _emit(self, deltas: Iterable[AnswerDelta]) -> None:
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self._emit_text(delta.text)
            else:
                self._pending.clear()
                self.stream.put(delta)

    def _emit_text(self, text: str) -> None:
        if text and self._pending:
            self.stream.put(TextDelta(text, tuple(self._pending)))
            self._pending.clear()
        elif text:
            self.stream.put(text)


@attrs.define(eq=False)
class Sequence:
    """The state of one sequence; after it was built, used on the owner thread only."""

    prompt: list[int]
    """Token ids, at least one."""
    settings: GenerationSettings
    """Validated, with every None filled."""
    limits: SequenceLimits
    output: SequenceOutput
    clock: Clock
    models: tuple[PooledModel, ...]
    """The model, leased, and the draft model when there is one; empty after the end."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    constraints: Callable[[list[int]], tuple[LogitsProcessor, ...]] | None = None
    """Builds the grammar's and the reasoning budget's logits processors, given the tokens generated so far."""
    media: Media | None = None
    """The images and audio of the prompt."""
    tenant: str = ""
    """Owner of the prompt."""
    boundaries: tuple[int, ...] = ()
    """Ends of the messages that a later prompt is likely to begin with, in tokens from the prompt's start."""
    fetched: Any = None
    """A ``FetchedSnapshot`` of the prompt from the disk tier; consumed when the sequence starts."""
    load_seconds: float = 0.0
    notes: list[str] = attrs.field(factory=list)
    """Reported with the end."""
    generated: list[int] = attrs.field(factory=list)
    reused_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""
    exact: bool = True
    """Whether those keys and values were never quantized; see ``PrefixMatch``."""
    ended: bool = False
    alone: bool = False
    """Whether it needs a batch of its own, after its batch failed."""
    joint_prefill_failed: bool = False
    """Whether a prefill pass with other prompts has failed."""
    failures: int = 0
    """Number of batches that have failed with it."""
    error: Exception | None = None
    """An exception of one of its logits processors."""
    prefill: Prefill | None = None
    """Set while the prompt is computed."""
    cache_tokens: list[int] = attrs.field(factory=list)
    """The tokens whose keys and values are in the cache; updated while decoding."""
    drafted: bool = False
    """Whether its draft model may propose tokens; False for a default draft model that the request excludes."""
    proposed_tokens: int = 0
    """Tokens that its draft model has proposed."""
    accepted_tokens: int = 0
    """Proposed tokens that were accepted."""
    primed: bool = False
    """Whether the token in flight is a generated one; the first token in flight is the prompt's last."""
    processors: tuple[LogitsProcessor, ...] = ()
    context: Any = None
    """Buffer of the generated tokens for the processors; None without processors."""
    sampling: SamplingParameters = attrs.field(init=False)
    random: RandomStream = attrs.field(init=False)
    _end_tokens: frozenset[int] = attrs.field(init=False)
    _queued_at: float = attrs.field(init=False)
    _started_at: float | None = attrs.field(init=False, default=None)
    _first_token_at: float | None = attrs.field(init=False, default=None)
    _reported_at: float | None = attrs.field(init=False, default=None)
    _prompt_emitted: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        """Derive values from the settings."""
        self.sampling = SamplingParameters.of(self.settings)
        self.random = RandomStream(self.settings.seed)
        self._end_tokens = frozenset() if self.settings.ignore_eos else self.limits.end_tokens
        self._queued_at = self.clock.monotonic()

    @property
    def model(self) -> PooledModel:
        """The model; the target model where there is a draft model."""
        return self.models[0]

    @property
    def tokens(self) -> list[int]:
        """The prompt and the tokens generated so far: the input of a prefill after a batch failed."""
        return [*self.prompt, *self.generated]

    @property
    def prefill_remaining(self) -> int:
        """Prompt tokens still to compute; an upper bound before the prefill has begun."""
        if self.prefill is not None:
            return self.prefill.remaining
        return len(self.prompt) + len(self.generated) - 1

    @property
    def prefill_position(self) -> int:
        """Tokens computed so far by the prefill."""
        return self.prefill.position if self.prefill is not None else 0

    @property
    def costs(self) -> PassCosts:
        """The measured costs of the model's passes."""
        return self.model.costs

    @property
    def cache_identity(self) -> PrefixIdentity:
        """Identity of its entries in the prefix cache."""
        media, options = self.media, self.engine_options
        form = f"#{self.model.form.name}" if self.model.form.widened else ""
        kind = f"{cache_kind(options)}{form}{media.kind if media is not None else ''}"
        media_identity = MediaIdentity() if media is None else media.identity
        return PrefixIdentity(self.model.model.identity, kind, self.tenant, media_identity, options.stored_bits)

    @property
    def draft_identity(self) -> PrefixIdentity:
        """Identity of its draft model's entries in the prefix cache."""
        stored = self.engine_options.stored_bits
        return PrefixIdentity(self.models[1].model.identity, "", self.tenant, stored_bits=stored)

    @property
    def batch_kind(self) -> tuple[object, str]:
        """Equal for sequences that may share a batch: the network and the kind of KV cache."""
        return (id(self.model.model.network), cache_kind(self.engine_options))

    @property
    def can_share(self) -> bool:
        """Whether its model and its options allow sharing a batch."""
        return self.engine_options.batchable and self.model.model.shares_batches

    @property
    def must_decode_alone(self) -> bool:
        """Whether it cannot share a batch; known once its prompt is computed."""
        if self.alone or not self.can_share or self.prefill is None:
            return True
        return not all(hasattr(layer, "merge") for layer in self.prefill.cache)

    @property
    def shares_passes(self) -> bool:
        """Whether its prompt may be computed in one pass with others; known once its prefill has begun."""
        if self.prefill is None or self.alone or self.media is not None or self.prefill.is_drafted:
            return False
        if any(stop > self.prefill.position for stop in self.prefill.stops):
            return False
        plain = self.can_share and self.scored_alternatives is None and is_plain(self.prefill.cache)
        return plain and not self.joint_prefill_failed

    @property
    def ends_with_token_in_flight(self) -> bool:
        """Whether the token in flight is the last one allowed."""
        return self.primed and len(self.generated) + 1 >= self.limits.max_tokens

    def start(self, reused_tokens: int) -> None:
        """Build the logits processors; at the first call, also note the start time and the reused tokens."""
        self.processors = logits_processors(self.settings)
        if self.constraints is not None:
            self.processors += self.constraints(self.generated)
        self.renew_context()
        if self._started_at is None:
            self._started_at = self.clock.monotonic()
            self.reused_tokens = reused_tokens

    def renew_context(self) -> None:
        """Fill the processors' buffer with the tokens generated so far."""
        self.context = TokenBuffer(self.generated) if self.processors else None

    @property
    def scored_alternatives(self) -> int | None:
        """Alternatives a prompt token when the prompt is scored, which excludes the prefix cache; None otherwise."""
        return self.settings.logprobs if self.settings.echo else None

    def report_progress(self) -> None:
        """Emit the progress of the prefill, at most once every ``_PROGRESS_SECONDS``."""
        if self.prefill is None or self.generated:
            return
        now = self.clock.monotonic()
        if self._reported_at is None:
            self._reported_at = self._started_at
        if self._reported_at is not None and now - self._reported_at >= _PROGRESS_SECONDS:
            self._reported_at = now
            self.output.stream.put(PromptProgress(self.prefill.position, len(self.prompt)))

    def end_prefill(self) -> None:
        """Note that the prompt is computed; with ``echo``, emit it once."""
        self.cache_tokens = self.tokens[:-1]
        if not self.settings.echo or self._prompt_emitted:
            return
        self._prompt_emitted = True
        decoder = self.model.model.decoder
        text = b"".join(map(decoder.spell, self.prompt)).decode("utf-8", "replace")
        tokens: tuple[TokenLogprob, ...] = ()
        if self.prefill is not None and self.scored_alternatives is not None:
            scores = zip(self.prompt[1:], self.prefill.scores, strict=False)  # further scores are of generated tokens
            first = TokenLogprob(_alternative(decoder, self.prompt[0], 0.0))
            tokens = (first, *(_token_logprob(decoder, token, each) for token, each in scores))
        self.output.stream.put(PromptDelta(text, tokens))

    def accept(self, token: int, logprobs: TopLogprobs | None = None) -> FinishReason | None:
        """Append a generated token; return why the sequence ends with it, or None when it continues."""
        if self._first_token_at is None:
            self._first_token_at = self.clock.monotonic()
        self.generated.append(token)
        if token in self._end_tokens:
            return FinishReason.STOP
        logprob = None if logprobs is None else _token_logprob(self.model.model.decoder, token, logprobs)
        if self.output.feed(token, logprob):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.generated) >= self.limits.max_tokens else None

    def finish(self, reason: FinishReason) -> None:
        """Emit the remaining text and the final event; later calls do nothing."""
        if self.ended:
            return
        reason = self.output.flush(reason)
        cut = reason is FinishReason.LENGTH
        accepted = min(self.accepted_tokens, len(self.generated))
        usage = Usage(
            len(self.prompt),
            len(self.generated),
            self.reused_tokens,
            self.output.reasoning_tokens,
            accepted,
            self.proposed_tokens - accepted,
        )
        timings = self._timings()
        if self.models:
            self.model.measure_speed(usage.completion_tokens, timings.generation_seconds)
        self.output.stream.put(
            Finished(
                reason,
                usage,
                timings,
                self.limits.max_tokens if cut else None,
                tuple(self.notes),
                stop_sequence=self.output.stop_sequence,
                window_full=cut and self.limits.by_window,
            )
        )
        self.ended = True

    def fail(self, error: MlxkError) -> None:
        """Emit an error as the final event; later calls do nothing."""
        if not self.ended:
            self.ended = True
            self.output.stream.put(error)

    def release_arrays(self) -> None:
        """Drop every reference to MLX: a stream may outlive its sequence, but must not keep a model in memory."""
        self.models, self.media, self.prefill = (), None, None
        self.processors, self.context, self.constraints, self.error = (), None, None, None

    def _timings(self) -> Timings:
        now = self.clock.monotonic()
        started = now if self._started_at is None else self._started_at
        first = now if self._first_token_at is None else self._first_token_at
        return Timings(self.load_seconds, first - started, now - first, started - self._queued_at)


def _token_logprob(decoder: TokenDecoder, token: int, logprobs: TopLogprobs) -> TokenLogprob:
    """Return the log probabilities of one token with text and bytes instead of token ids."""
    alternatives = tuple(_alternative(decoder, each, value) for each, value in logprobs.alternatives)
    return TokenLogprob(_alternative(decoder, token, logprobs.logprob), alternatives)


def _alternative(decoder: TokenDecoder, token: int, logprob: float) -> TokenAlternative:
    utf8 = decoder.spell(token)
    value = min(logprob, 0.0) if math.isfinite(logprob) else _MIN_LOGPROB
    return TokenAlternative(utf8.decode("utf-8", "replace"), utf8, value)
