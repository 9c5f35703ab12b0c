"""What training makes smaller: the loss of answers, and of pairs that of preferring the better answer (DPO)."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxk.adapters.mlx.loading.text_model import LoadedModel, LoadedTokenizer
from mlxk.adapters.mlx.tuning.examples import EncodedExample, ExampleEncoder


class Losses:
    """Computes the losses of examples with a model that reads text.

    Args:
        model: It is trained, or measured.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.network: nn.Module = model.network

    def encoder(self, tokenizer: LoadedTokenizer, max_length: int, *, mask_prompt: bool) -> ExampleEncoder:
        """Return what makes tokens of the examples; for arguments see ``ExampleEncoder``."""
        return ExampleEncoder(tokenizer, max_length, mask_prompt=mask_prompt)

    def batch(self, examples: Sequence[EncodedExample]) -> Any:  # noqa: ANN401 - trees of arrays
        """Return what ``sums`` takes for examples; it does not depend on what is trained."""
        length = max(len(each.tokens) for each in examples)
        tokens = [[*each.tokens, *[0] * (length - len(each.tokens))] for each in examples]
        return mx.array(tokens, dtype=mx.int32), mx.stack([mask_of(each, length) for each in examples])

    def sums(self, batch: Any) -> tuple[mx.array, mx.array]:  # noqa: ANN401
        """Return the sum of the losses of each example, in nats, and over how many tokens; both of shape [B]."""
        tokens, mask = batch
        logits = self.network(tokens[:, :-1]).astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, tokens[:, 1:]) * mask
        return losses.sum(axis=1), mask.sum(axis=1)


def mask_of(example: EncodedExample, length: int) -> mx.array:
    """Return which of the tokens from the second on are learned, as 0 or 1; padding is not."""
    learned = [float(any(a <= at < b for a, b in example.learned)) for at in range(1, length)]
    return mx.array(learned, dtype=mx.float32)


class Objective:
    """What is made smaller, of answers or of pairs.

    Args:
        losses: Those of the model.
        beta: How far the preferences may take the model away from what it was.
    """

    def __init__(self, losses: Losses, beta: float) -> None:
        self._losses, self._beta = losses, beta
        self._before: dict[int, tuple[float, float]] = {}

    def refer(self, examples: Sequence[EncodedExample]) -> None:
        """Remember what the model thinks of the answers of pairs before it is trained."""
        for each in examples:
            if each.worse is not None:
                sums, _ = self._losses.sums(self._losses.batch([each, each.worse]))
                better, worse = (float(value) for value in sums.tolist())  # type: ignore[union-attr, arg-type]
                self._before[id(each)] = better, worse

    def batch(self, examples: Sequence[EncodedExample]) -> tuple[Any, int]:
        """Return what ``loss`` takes for examples, and over how much it is the mean: tokens, or pairs."""
        worse = [each.worse for each in examples if each.worse is not None]
        if not worse:
            return (self._losses.batch(examples), None), sum(each.learned_tokens for each in examples)
        before = [self._before[id(each)] for each in examples]
        margins = mx.array([one - other for one, other in before], dtype=mx.float32)
        return (self._losses.batch([*examples, *worse]), margins), len(examples)

    def loss(self, network: nn.Module, batch: Any) -> mx.array:  # noqa: ANN401
        """Return the mean loss, in nats; of pairs by the difference to what the model thought before."""
        prepared, margins = batch
        sums, counts = self._losses.sums(prepared)
        if margins is None:
            mean: mx.array = sums.sum() / counts.sum()
            return mean
        better, worse = mx.split(sums, 2)
        preferred: mx.array = nn.log_sigmoid(self._beta * (margins - (better - worse))).mean()
        return -preferred

    def mean(self, examples: Sequence[EncodedExample], batch_size: int) -> float:
        """Return the loss of many examples."""
        ordered = sorted(examples, key=lambda each: len(each.tokens))
        losses = []
        for start in range(0, len(ordered), batch_size):
            batch, count = self.batch(ordered[start : start + batch_size])
            losses.append((number(self.loss(self._losses.network, batch)), count))
        mx.clear_cache()
        return weighted(losses) or 0.0


def weighted(losses: Sequence[tuple[float, int]]) -> float | None:
    """Return the mean of losses that are means over so much; None of none."""
    count = sum(tokens for _, tokens in losses)
    return sum(loss * tokens for loss, tokens in losses) / count if count else None


def number(value: mx.array) -> float:
    """Return the one number of an array."""
    found: Any = value.item()
    return float(found)
