"""Log probabilities as callers see them: with text and bytes instead of token numbers."""

import math

from mlxk.adapters.mlx.engine.batch import Ranking
from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder
from mlxk.domain.generation.request import TokenAlternative, TokenLogprob

_UNLIKELY = -9999.0
"""In place of minus infinity, which JSON cannot carry."""


def token_logprob(decoder: TokenDecoder, token: int, ranking: Ranking) -> TokenLogprob:
    """Spell out one token and its alternatives."""
    alternatives = tuple(_alternative(decoder, each, value) for each, value in ranking.alternatives)
    return TokenLogprob(_alternative(decoder, token, ranking.logprob), alternatives)


def _alternative(decoder: TokenDecoder, token: int, logprob: float) -> TokenAlternative:
    utf8 = decoder.spell(token)
    value = min(logprob, 0.0) if math.isfinite(logprob) else _UNLIKELY
    return TokenAlternative(utf8.decode("utf-8", "replace"), utf8, value)
