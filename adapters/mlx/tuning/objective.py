"""The training objective: cross-entropy of answers, or the DPO loss of pairs of a better and a worse answer."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxk.adapters.mlx.loading.text_model import LoadedModel, LoadedTokenizer
from mlxk.adapters.mlx.tuning.examples import EncodedExample, ExampleEncoder


class Losses:
    """Computes the losses of examples with a text model.

    Args:
        model: The model to train or evaluate.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.network: nn.Module = model.network

    def encoder(self, tokenizer: LoadedTokenizer, max_length: int, *, mask_prompt: bool) -> ExampleEncoder:
        """Return the encoder of examples; for arguments see ``ExampleEncoder``."""
        return ExampleEncoder(tokenizer, max_length, mask_prompt=mask_prompt)

    def batch(self, examples: Sequence[EncodedExample]) -> Any:  # noqa: ANN401 - trees of arrays
        """Return examples as a batch for ``sums``; it does not depend on the trained weights."""
        length = max(len(each.tokens) for each in examples)
        tokens = [[*each.tokens, *[0] * (length - len(each.tokens))] for each in examples]
        return mx.array(tokens, dtype=mx.int32), mx.stack([mask_of(each, length) for each in examples])

    def sums(self, batch: Any) -> tuple[mx.array, mx.array]:  # noqa: ANN401
        """Return the sum of the losses of each example, in nats, and its number of learned tokens; shape [B] both."""
        tokens, mask = batch
        logits = self.network(tokens[:, :-1]).astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, tokens[:, 1:]) * mask
        return losses.sum(axis=1), mask.sum(axis=1)


def mask_of(example: EncodedExample, length: int) -> mx.array:
    """Return 1 for each token from the second on that is learned, else 0, padded to shape [length - 1]."""
    learned = [float(any(a <= at < b for a, b in example.learned)) for at in range(1, length)]
    return mx.array(learned, dtype=mx.float32)


class Objective:
    """The loss to minimize, of answers or of pairs.

    Args:
        losses: Computes the losses of examples.
        beta: DPO's weight of the difference to the model before training; a larger one keeps the model closer to it.
    """

    def __init__(self, losses: Losses, beta: float) -> None:
        self._losses, self._beta = losses, beta
        self._before: dict[int, tuple[float, float]] = {}
        """Losses of the better and the worse answer before training, by the id of the example."""

    def refer(self, examples: Sequence[EncodedExample]) -> None:
        """Compute the reference losses of pairs with the untrained model."""
        for each in examples:
            if each.worse is not None:
                sums, _ = self._losses.sums(self._losses.batch([each, each.worse]))
                better, worse = (float(value) for value in sums.tolist())  # type: ignore[union-attr, arg-type]
                self._before[id(each)] = better, worse

    def batch(self, examples: Sequence[EncodedExample]) -> tuple[Any, int]:
        """Return examples as a batch for ``loss``, and the number of tokens or pairs over which that is the mean."""
        worse = [each.worse for each in examples if each.worse is not None]
        if not worse:
            return (self._losses.batch(examples), None), sum(each.learned_tokens for each in examples)
        before = [self._before[id(each)] for each in examples]
        margins = mx.array([better - worse_loss for better, worse_loss in before], dtype=mx.float32)
        return (self._losses.batch([*examples, *worse]), margins), len(examples)

    def loss(self, network: nn.Module, batch: Any) -> mx.array:  # noqa: ANN401
        """Return the mean loss in nats; for pairs, of the change in preference since before the training."""
        prepared, margins = batch
        sums, counts = self._losses.sums(prepared)
        if margins is None:
            mean: mx.array = sums.sum() / counts.sum()
            return mean
        better, worse = mx.split(sums, 2)
        preferred: mx.array = nn.log_sigmoid(self._beta * (margins - (better - worse))).mean()
        return -preferred

    def mean(self, examples: Sequence[EncodedExample], batch_size: int) -> float:
        """Return the mean loss of examples, computed in batches."""
        ordered = sorted(examples, key=lambda each: len(each.tokens))
        losses = []
        for start in range(0, len(ordered), batch_size):
            batch, count = self.batch(ordered[start : start + batch_size])
            losses.append((number(self.loss(self._losses.network, batch)), count))
        mx.clear_cache()
        return weighted(losses) or 0.0


def weighted(losses: Sequence[tuple[float, int]]) -> float | None:
    """Return the weighted mean of losses, each given with its weight; None without any."""
    total = sum(weight for _, weight in losses)
    return sum(loss * weight for loss, weight in losses) / total if total else None


def number(value: mx.array) -> float:
    """Return a scalar array as a number."""
    scalar: Any = value.item()
    return float(scalar)
