"""Reading answers in tests, and mlx-lm's own greedy answer to hold them against."""

import functools
from collections.abc import Iterable
from typing import Any

import attrs

from mlxk.domain.generation.request import Finished, GenerationEvent, TextDelta
from mlxk.domain.models.model import ModelHandle


@attrs.frozen
class Answer:
    """A whole answer."""

    text: str
    tokens: tuple[bytes, ...]
    """The bytes of each token, when log probabilities were asked for."""
    finished: Finished
    deltas: int


def read(stream: Iterable[GenerationEvent]) -> Answer:
    """Read a stream to its end."""
    events = list(stream)
    deltas = [event for event in events[:-1] if isinstance(event, TextDelta)]
    assert isinstance(events[-1], Finished)
    tokens = tuple(each.token.utf8 for delta in deltas for each in delta.logprobs)
    return Answer("".join(delta.text for delta in deltas), tokens, events[-1], len(deltas))


@functools.cache
def loaded(handle: ModelHandle) -> tuple[Any, Any]:
    """Load a model with mlx-lm itself."""
    import mlx_lm

    from mlxk.adapters.mlx import library_imports  # noqa: F401 - imports mlx-lm without its side effects

    return mlx_lm.load(handle.directory)  # type: ignore[no-any-return]


@functools.cache
def oracle(handle: ModelHandle, prompt: str, max_tokens: int = 24, **options: Any) -> tuple[bytes, ...]:
    """Return the bytes of each token of mlx-lm's own greedy answer, without the end token."""
    import mlx_lm

    from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder

    network, tokenizer = loaded(handle)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    stream = mlx_lm.stream_generate(network, tokenizer, tokens, max_tokens=max_tokens, **options)
    found = [response.token for response in stream]
    decoder = TokenDecoder(tokenizer)
    return tuple(decoder.spell(token) for token in found if token not in tokenizer.eos_token_ids)
