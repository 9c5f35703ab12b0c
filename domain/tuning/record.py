"""The record of a training beside its adapter: JSON for programs, and a model card for people."""

import json

import attrs

from mlxk.domain.tuning.base import RECORD, BaseModel
from mlxk.domain.tuning.examples import ExampleKind
from mlxk.domain.tuning.training import TrainingPoint, TrainingResult, TuningSettings, perplexity

CARD = "README.md"


@attrs.frozen
class UsedData:
    """The data of a training."""

    name: str
    """Name of the file or folder, without its parent folders."""
    digest: str
    """``sha256:`` and 64 hexadecimal digits over the content of the files."""
    kind: str
    """The value of the examples' ``ExampleKind``."""
    train: int
    """Number of training examples."""
    valid: int
    """Number of validation examples."""
    divided: bool
    """Whether the validation examples were held out from the training file."""


@attrs.frozen
class TrainingRecord:
    """A finished training."""

    base: BaseModel
    data: UsedData
    settings: TuningSettings
    result: TrainingResult

    def as_json(self) -> bytes:
        """Return the content of ``RECORD``."""
        result = self.result
        figures = {
            "steps": result.steps,
            "stopped_early": result.stopped,
            "resumed_at": result.resumed_at,
            "train_loss": result.loss,
            "valid_loss": result.valid_loss,
            "trained_parameters": result.trained_parameters,
            "tokens": result.tokens,
            "seconds": round(result.seconds, 1),
            "peak_memory_bytes": result.peak_bytes,
        }
        document = {
            "format": 1,
            "base": attrs.asdict(self.base),
            "data": attrs.asdict(self.data),
            "settings": self.settings.as_fields(),
            "figures": figures,
            "losses": [point_fields(point) for point in result.points],
        }
        return (json.dumps(document, indent=2) + "\n").encode()

    def card(self, name: str) -> bytes:
        """Return the model card.

        Args:
            name: Name of the adapter.
        """
        base, data, settings, result = self.base, self.data, self.settings, self.result
        base_name = base.hub_name or base.name.rpartition("/")[2]
        head = ["library_name: mlx", "tags:", "- mlx", "- adapter", f"- {settings.method.value}"]
        head += [] if base.hub_name is None else [f"base_model: {base.hub_name}", "base_model_relation: adapter"]
        pairs = data.kind == ExampleKind.PAIR.value
        first, last = (_loss(loss, pairs) for loss in (result.first_loss, result.loss))
        losses = [f"- Loss: {first} at the beginning, {last} at the end"]
        if result.valid_loss is not None:
            before, after = (_loss(loss, pairs) for loss in (result.first_valid_loss, result.valid_loss))
            losses.append(f"- Loss of the validation: {before} before, {after} after")
        layers = f"the last {settings.layers} layers" if settings.layers > 1 else "the last layer"
        size = f"rank {settings.rank}, scale {settings.scale:g}" if settings.method.value != "full" else "whole weights"
        early = " (ended before its time)" if result.stopped else ""
        lines = [
            "---",
            *head,
            "---",
            "",
            f"# {name}",
            "",
            f"An adapter of {base_name} ({settings.method.value}), trained with mlxk.",
            "",
            f"- Base: {base_name}, content {base.content_hash or 'without a hash'}",
            f"- Data: {data.train} examples of {data.kind}, {data.valid} for validation, content {data.digest}",
            f"- Trained: {layers}, {size}; {result.trained_parameters:,} numbers",
            f"- Steps: {result.steps} of {settings.steps}{early}, batches of {settings.batch_size},"
            f" learning rate {settings.learning_rate:g}, seed {settings.seed}",
            *losses,
            "",
            f"`{RECORD}` has all settings and figures. The files are in the usual format of adapters for MLX.",
            "",
        ]
        return "\n".join(lines).encode()


def _loss(value: float | None, pairs: bool) -> str:
    """Return a loss as text, with its perplexity unless it is a loss of pairs, which is not a mean over tokens."""
    if value is None or pairs:
        return "unknown" if value is None else f"{value:.3f}"
    return f"{value:.3f} (perplexity {perplexity(value):.4g})"


def point_fields(point: TrainingPoint) -> dict[str, object]:
    """Return the known figures of a step for JSON, floats with six digits."""
    return {name: _rounded(value) for name, value in attrs.asdict(point).items() if value is not None}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
