"""Building a sequence from a request: rendering, token counts, limits, reasoning budget and grammar.

Runs in the caller's thread and computes nothing with MLX.
"""

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.engine.prefix_cache import boundaries
from mlxk.adapters.mlx.engine.proposers import draft_exclusion
from mlxk.adapters.mlx.engine.sampling import LogitsProcessor
from mlxk.adapters.mlx.engine.sequence import Sequence, SequenceLimits, SequenceOutput
from mlxk.adapters.mlx.loading.text_model import LoadedModel, PooledModel
from mlxk.adapters.mlx.prompting.conversation_rendering import rendering_job
from mlxk.adapters.mlx.prompting.detokenizer import Detokenizer
from mlxk.adapters.mlx.prompting.grammar import AnswerBegins, CallOpenings, CompiledGrammar, GrammarConstraint
from mlxk.adapters.mlx.prompting.template_sandbox import waiting_lock
from mlxk.adapters.mlx.prompting.templates import RenderedPrompt
from mlxk.application.ports.system import Clock
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import CapabilityError, ContextLengthError, IncompatibleModelError, ValidationError
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import ReasoningFormat, ReasoningStyle
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ForcedCallSplitter, ToolCallFormat
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest, TokenIds
from mlxk.domain.generation.settings import DEFAULT_THINKING_TAGS, PRODUCT_DEFAULTS, EngineOptions, GenerationSettings

MAX_VOCABULARY_SIZE = 2**31
"""Assumed where a model's config does not state the vocabulary size: the number of token ids that MLX can represent."""

DEFAULT_MAX_TOKENS = 4096
"""Tokens generated at most when neither the request nor the model's config sets a limit."""


@attrs.frozen(eq=False)
class Constraints:
    """Builds the logits processors of a sequence that depend on its text; called again after a failed batch."""

    grammar: CompiledGrammar | None
    thinking_budget: int | None
    closing: tuple[int, ...]
    """The tokens that end reasoning."""
    opening: tuple[int, ...]
    """The tokens that begin reasoning."""
    calls: Callable[[], CallOpenings] | None
    """Returns the openings of tool calls, each an alternative to text that matches the grammar; None without any."""
    detokenizer: Callable[[], Detokenizer]
    parser: Callable[[], OutputParser]
    """Builds the parser that separates reasoning from text."""

    def __call__(self, generated: list[int]) -> tuple[LogitsProcessor, ...]:
        """Build the processors for a sequence with these generated tokens."""
        processors: list[LogitsProcessor] = []
        if self.thinking_budget is not None:
            reader = ReasoningReader(self.detokenizer(), self.parser())
            processors.append(ThinkingBudget(self.thinking_budget, self.closing, self.opening, reader))
        if self.grammar is not None:
            begins = answer_begins(self.detokenizer(), self.parser())
            constraint = self.grammar.constrain(begins, calls=self.calls() if self.calls is not None else None)
            if generated:
                # The constraint ignores the tokens of its first call, so that must have none.
                constraint(mx.array([], dtype=mx.int32), mx.zeros((1, 1)))
            processors.append(_raising(constraint))
        return tuple(processors)


def answer_begins(detokenizer: Detokenizer, parser: OutputParser) -> AnswerBegins | None:
    """Return a function that detects where the reasoning ends and the answer begins.

    Args:
        detokenizer: New.
        parser: New, with the model's reasoning format and the prompt's tail.

    Returns:
        None when the answer begins with the first token.
    """
    if parser.answering:
        return None

    def begins(token: int) -> bool:
        parser.feed(detokenizer.feed(token))
        return parser.answering

    return begins


class ReasoningReader:
    """Detects in the generated tokens where the reasoning begins and ends.

    Args:
        detokenizer: New.
        parser: New, initialised with the prompt's tail.
    """

    def __init__(self, detokenizer: Detokenizer, parser: OutputParser) -> None:
        self._detokenizer = detokenizer
        self._parser = parser
        self._read_count = 0
        self.thinking_since: int | None = 0 if parser.thinking else None
        """Number of generated tokens before the reasoning; None while there is no reasoning."""
        self.over = False
        """Whether the reasoning has ended or can no longer begin: no need to ``read``, which waits for the device."""

    def read(self, generated: mx.array) -> None:
        """Read the tokens generated since the last call."""
        fresh: Any = generated[self._read_count :].tolist()
        for token in fresh:
            self._parser.feed(self._detokenizer.feed(token))
            self._read_count += 1
            if self._parser.thinking and self.thinking_since is None:
                self.thinking_since = self._read_count
            elif not self._parser.thinking and self.thinking_since is not None:
                self.thinking_since, self.over = None, True
        self.over = self.over or self._parser.past_reasoning


class ThinkingBudget:
    """A logits processor that ends the reasoning after a number of tokens.

    Models often begin to reason again after that; where a single token begins reasoning, it is masked from then on.

    Args:
        budget: Maximum number of reasoning tokens.
        closing: The tokens that end reasoning.
        opening: The tokens that begin reasoning.
        reader: New.
    """

    def __init__(
        self, budget: int, closing: tuple[int, ...], opening: tuple[int, ...], reader: ReasoningReader
    ) -> None:
        self._budget = budget
        self._closing = closing
        self._masked = opening[0] if len(opening) == 1 else None
        self._reader = reader
        self._closing_since: int | None = None

    def __call__(self, generated: mx.array, logits: mx.array) -> mx.array:
        """Return the logits unchanged within the budget; then allow only the closing tokens, one after the other."""
        count = generated.size
        if self._closing_since is None:
            if self._reader.over or count < self._budget:
                return logits
            self._reader.read(generated)
            since = self._reader.thinking_since
            if self._reader.over or since is None or count - since < self._budget:
                return logits
            self._closing_since = count
        position, tokens = count - self._closing_since, mx.arange(logits.shape[-1])[None]
        if position < len(self._closing):
            return mx.where(tokens == self._closing[position], mx.zeros_like(logits), -math.inf)
        return logits if self._masked is None else mx.where(tokens == self._masked, -math.inf, logits)


def _raising(constraint: GrammarConstraint) -> LogitsProcessor:
    """Return a logits processor that raises when llguidance fails, which fails the sequence."""

    def process(generated: mx.array, logits: mx.array) -> mx.array:
        logits = constraint(generated, logits)
        if constraint.error is not None:
            raise ValidationError(
                f"The grammar is too complex to be followed: {constraint.error}",
                hint="Use shorter repetitions, or leave it out and check the answer instead.",
            )
        return logits

    return process


def build_sequence(
    request: GenerationRequest,
    models: tuple[PooledModel, ...],
    stream: QueuedTextStream,
    clock: Clock,
    rendered: RenderedPrompt | None = None,
) -> Sequence:
    """Build the sequence of a request.

    Args:
        request: Validated.
        models: The model, and the draft model when there is one; leased.
        stream: Receives the events.
        clock: For the timings.
        rendered: The rendered prompt of a request with media; None to render it here.

    Raises:
        ValidationError: The prompt is empty or cannot be rendered, a biased token does not exist, the grammar cannot be
            used, or options exclude each other.
        ContextLengthError: The prompt leaves no room for generated tokens.
        CapabilityError: A required draft model has another vocabulary, or excludes a reasoning budget that is needed.
        InterruptedRunError: The client has gone.
        IncompatibleModelError: The tokenizer has tokens that the model does not have.
    """
    model, is_chat = models[0].model, isinstance(request.prompt, Conversation)
    request, reductions = request.within_limits()
    settings = request.settings.filled_from(model.defaults).filled_from(PRODUCT_DEFAULTS)
    excluded = draft_exclusion(request, settings, models) if len(models) > 1 else None
    drafted = len(models) > 1 and excluded is None
    if rendered is None:
        with waiting_lock(model.lock, request.is_abandoned):
            rendered = model.renderer.render(request.prompt, rendering_job(request))
    reasoning = _reasoning(request, settings, model)
    if request.reasons is False and not rendered.has_reasoning_switch and reasoning is not None:
        settings = _without_reasoning(settings, model, drafted=drafted and request.engine_options.draft_required)
        if drafted:
            excluded, drafted = "its reasoning is cut short", False
    _check_token_prompt(request.prompt, model)
    if not rendered.tokens:
        field = "messages" if is_chat else "prompt"
        raise ValidationError.in_field(field, "there is nothing in it to answer", hint="Send some text.")
    _check_tokens(rendered.tokens, settings, model)
    ends = model.turn_ends() if is_chat else model.end_tokens
    limits = _limits(len(rendered.tokens), settings.max_tokens, _window(request, model), ends, model)
    parser = _parser(request, settings, model, reasoning, rendered)
    stream.adaptations, stream.prompt_tokens = (*rendered.adaptations, *reductions), len(rendered.tokens)
    return Sequence(
        prompt=list(rendered.tokens),
        settings=settings,
        limits=limits,
        output=SequenceOutput(model.decoder.answer(), parser, stream),
        clock=clock,
        models=models,
        engine_options=request.engine_options,
        constraints=_constraints(settings, model, reasoning, rendered, _tools(request)),
        drafted=drafted,
        notes=[*_notes(request.engine_options, excluded), *(each.sentence for each in stream.adaptations)],
        tenant=request.tenant,
        boundaries=boundaries(rendered.tokens, model.message_ends()) if is_chat else (),
    )


def _reasoning(request: GenerationRequest, settings: GenerationSettings, model: LoadedModel) -> ReasoningFormat | None:
    """Return the format of the reasoning: the request's tags, the model's format, or the usual tags.

    The usual tags serve a reasoning budget of a model without a known format, which may still begin to reason.
    """
    if request.thinking_tags is not None:
        detected, (start, end) = model.reasoning, request.thinking_tags
        if detected is not None and (detected.start, detected.end) == (start, end):
            return detected
        return ReasoningFormat(ReasoningStyle.TAGS, start, end)
    if model.reasoning is None and settings.thinking_budget is not None:
        return ReasoningFormat(ReasoningStyle.TAGS, *DEFAULT_THINKING_TAGS)
    return model.reasoning


def _parser(
    request: GenerationRequest,
    settings: GenerationSettings,
    model: LoadedModel,
    reasoning: ReasoningFormat | None,
    rendered: RenderedPrompt,
) -> OutputParser | None:
    """Return the parser of the generated text; None when there is nothing to find in it."""
    tools = _tools(request)
    calls = ToolCallFormat(model.call_syntaxes, Tools(tools), rendered.new_call_id) if tools else None
    forced = ForcedCallSplitter(settings.forced_call.name, rendered.new_call_id()) if settings.forced_call else None
    if not settings.stop and reasoning is None and calls is None and forced is None:
        return None
    return OutputParser(settings.stop, reasoning, calls, rendered.tail, forced)


def _tools(request: GenerationRequest) -> tuple[str, ...]:
    return request.prompt.tools if isinstance(request.prompt, Conversation) else ()


def _constraints(
    settings: GenerationSettings,
    model: LoadedModel,
    reasoning: ReasoningFormat | None,
    rendered: RenderedPrompt,
    tools: tuple[str, ...],
) -> Constraints | None:
    if settings.thinking_budget is None and settings.grammar is None:
        return None
    grammar = None
    allows_calls = settings.grammar is not None and settings.forced_call is None and bool(tools)
    if settings.grammar is not None:
        grammar = model.grammars.compile(settings.grammar.or_calls(tools) if allows_calls else settings.grammar)
    closing, opening = [], []
    if reasoning is not None and settings.thinking_budget is not None:
        text = reasoning.closing
        if grammar is not None and reasoning.style is ReasoningStyle.TAGS:
            # The grammar applies from the tag on, so nothing may follow it.
            text = f"\n{reasoning.end}"
        with model.lock:
            closing = list(model.tokenizer.encode(text, add_special_tokens=False))
            opening = list(model.tokenizer.encode(reasoning.start, add_special_tokens=False))
    return Constraints(
        grammar=grammar,
        thinking_budget=settings.thinking_budget,
        closing=tuple(closing),
        opening=tuple(opening),
        calls=_call_openings(model, tools) if allows_calls else None,
        detokenizer=model.decoder.stream,
        parser=lambda: OutputParser((), reasoning, None, rendered.tail),
    )


def _call_openings(model: LoadedModel, tools: tuple[str, ...]) -> Callable[[], CallOpenings]:
    """Return a function that builds the openings of the model's own tool calls."""
    texts = [text for syntax in model.call_syntaxes for text in syntax.beginnings]
    # A model without markers for calls may write them as Python; JSON calls are part of the grammar.
    texts = texts or [f"[{json.loads(tool)['function']['name']}(" for tool in tools]
    with model.lock:
        vocabulary = model.grammars.token_ids
    return functools.partial(CallOpenings, list(dict.fromkeys(texts)), vocabulary)


def _without_reasoning(settings: GenerationSettings, model: LoadedModel, *, drafted: bool) -> GenerationSettings:
    """Return settings with a reasoning budget of 0, for a model whose template has no switch for reasoning."""
    if drafted:
        raise CapabilityError(
            f"draft_model: the chat template of '{model.name}' cannot tell it not to reason, and beside a draft model"
            " its reasoning cannot be cut short.",
            hint="Leave out the draft model, or let it reason.",
        )
    return attrs.evolve(settings, thinking_budget=0)


_EXPERIMENTAL_NOTE = (
    "Keys and values are quantized by TurboQuant, in {:g} bits: experimental, and on a CPU half as fast."
)


def _notes(engine_options: EngineOptions, excluded: str | None) -> list[str]:
    options = {
        "draft_model": engine_options.draft_model if engine_options.draft_required else None,
        "max_kv_size": engine_options.max_kv_size if engine_options.cache_required else None,
    }
    names = [name for name, value in options.items() if value is not None]
    notes = [f"Computed outside the common batch because of {' and '.join(names)}."] if names else []
    if engine_options.is_turboquant and engine_options.cache_required:
        notes.append(_EXPERIMENTAL_NOTE.format(engine_options.kv_bits))
    return notes if excluded is None else [*notes, f"Computed without the draft model: {excluded.rstrip('.')}."]


def _check_token_prompt(prompt: Conversation | str | TokenIds, model: LoadedModel) -> None:
    if not isinstance(prompt, tuple):
        return
    size = MAX_VOCABULARY_SIZE if model.vocabulary_size is None else model.vocabulary_size
    unknown = next((token for token in prompt if not 0 <= token < size), None)
    if unknown is not None:
        raise ValidationError.in_field("prompt", f"names token {unknown}; the model has tokens 0 to {size - 1}")


def _check_tokens(tokens: tuple[int, ...], settings: GenerationSettings, model: LoadedModel) -> None:
    size = model.vocabulary_size
    if size is None:
        return
    if max(tokens) >= size:
        raise IncompatibleModelError(f"The tokenizer of '{model.name}' makes tokens the model does not have.")
    unknown = [token for token, _ in settings.logit_bias if not 0 <= token < size]
    if unknown:
        raise ValidationError.in_field("logit_bias", f"names token {unknown[0]}; the model has tokens 0 to {size - 1}")


def _window(request: GenerationRequest, model: LoadedModel) -> int | None:
    """Return the context window for a request, tokens; None when it is unknown."""
    limits = (model.context_length, request.context_limit)
    return min((tokens for tokens in limits if tokens is not None), default=None)


def _limits(
    prompt_tokens: int, max_tokens: int | None, window: int | None, ends: frozenset[int], model: LoadedModel
) -> SequenceLimits:
    """Return the limits of a sequence.

    Raises:
        ContextLengthError: The prompt leaves no room for generated tokens.
    """
    if window is None:
        return SequenceLimits(max_tokens or DEFAULT_MAX_TOKENS, ends)
    room = window - prompt_tokens
    if room < 1:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens, but the context window of '{model.name}' holds {window}.",
            hint="Shorten the prompt or the conversation.",
            detail={"prompt_tokens": prompt_tokens, "context_length": window},
        )
    if model.encodes_prompts:
        room = window  # the prompt is in the encoder's own window
    if max_tokens is None or max_tokens > room:
        return SequenceLimits(room, ends, by_window=True)
    return SequenceLimits(max_tokens, ends)
