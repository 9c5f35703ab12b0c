"""From a request to a row: rendering, counting, limits. Runs in the caller's thread and touches no array."""

from mlxk.adapters.mlx.answer import Answer, AnswerLimits
from mlxk.adapters.mlx.batch import Row
from mlxk.adapters.mlx.loading import LoadedModel
from mlxk.adapters.mlx.sampling import Draws, SamplingParameters
from mlxk.adapters.mlx.streams import AnswerSink
from mlxk.application.ports.clock import Clock
from mlxk.domain.answer_stream import AnswerStream
from mlxk.domain.errors import ContextLengthError, IncompatibleModelError, ValidationError
from mlxk.domain.generation import PRODUCT_DEFAULTS, GenerationRequest, GenerationSettings

UNKNOWN_CONTEXT_MAX_TOKENS = 4096
"""Tokens generated at most when neither the request nor the model's config sets a limit."""


def prepare(request: GenerationRequest, model: LoadedModel, sink: AnswerSink, clock: Clock) -> Row:
    """Build the row of a request.

    Raises:
        ValidationError: The prompt is empty or cannot be rendered, or a biased token does not exist.
        ContextLengthError: The prompt leaves no room for an answer.
        IncompatibleModelError: The tokenizer makes tokens the model does not have.
    """
    settings = request.settings.filled_from(model.defaults).filled_from(PRODUCT_DEFAULTS)
    with model.lock:
        rendered = model.renderer.render(request.prompt, request.thinking)
    tokens = rendered.tokens
    _check_tokens(tokens, settings, model)
    limits = AnswerLimits(_max_tokens(len(tokens), settings, model), model.end_tokens)
    parser = AnswerStream(settings.stop, model.reasoning, None, rendered.tail)
    plain = not settings.stop and model.reasoning is None
    answer = Answer(tokens, settings, limits, model.decoder.stream(), None if plain else parser, sink, clock)
    sampling = SamplingParameters.of(settings)
    return Row(answer, sampling, Draws(settings.seed))


def _check_tokens(tokens: tuple[int, ...], settings: GenerationSettings, model: LoadedModel) -> None:
    if not tokens:
        raise ValidationError("The prompt is empty.")
    size = model.vocabulary_size
    if size is None:
        return
    if max(tokens) >= size:
        raise IncompatibleModelError(f"The tokenizer of '{model.name}' makes tokens the model does not have.")
    unknown = [token for token, _ in settings.logit_bias if not 0 <= token < size]
    if unknown:
        raise ValidationError(f"logit_bias names token {unknown[0]}; the model has tokens 0 to {size - 1}")


def _max_tokens(prompt_tokens: int, settings: GenerationSettings, model: LoadedModel) -> int:
    """Return how many tokens the answer may have."""
    if model.context_length is None:
        return settings.max_tokens or UNKNOWN_CONTEXT_MAX_TOKENS
    room = model.context_length - prompt_tokens
    if room < 1:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens, but the context window of '{model.name}' holds"
            f" {model.context_length}.",
            hint="Shorten the prompt or the conversation.",
            detail={"prompt_tokens": prompt_tokens, "context_length": model.context_length},
        )
    return room if settings.max_tokens is None else min(settings.max_tokens, room)


