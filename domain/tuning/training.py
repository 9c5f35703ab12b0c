"""A training run: settings and their defaults, an estimate of its memory, its figures and result."""

import enum
import math
from collections.abc import Mapping

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.snapshot import text_section


class Method(enum.Enum):
    """The method of training; values are those in mlx-lm's adapters."""

    LORA = "lora"
    """Trains two low-rank matrices beside each weight matrix."""
    DORA = "dora"
    """LoRA, and the magnitude of each output's weights."""
    FULL = "full"
    """Trains the weights themselves."""


_INTEGER_RANGES = {
    "steps": (1, 10**7),
    "batch_size": (1, 4096),
    "layers": (1, 10_000),
    "rank": (1, 4096),
    "max_length": (8, 10**7),
    "seed": (0, 2**32 - 1),
    "save_every": (1, 10**7),
    "validate_every": (1, 10**7),
    "accumulation": (1, 4096),
}
_FLOAT_RANGES = {"scale": (0.0, 10_000.0), "dropout": (0.0, 0.99), "learning_rate": (0.0, 10.0), "beta": (0.0, 100.0)}
_MAY_BE_ZERO = frozenset({"dropout"})


@attrs.frozen
class TuningSettings:
    """All settings of a training run. Together with the data they determine its result."""

    steps: int
    """Updates of the weights."""
    batch_size: int
    """Examples of one batch."""
    layers: int
    """Number of layers to train, counted from the last one."""
    max_length: int
    """Most tokens of an example; longer ones are truncated."""
    learning_rate: float
    """The peak; the rate rises to it at the beginning, and falls to a tenth of it."""
    method: Method = Method.LORA
    rank: int = 8
    """Rank of LoRA's matrices."""
    scale: float = 2.0
    """Factor of the product of LoRA's matrices."""
    dropout: float = 0.0
    """Share of the inputs of LoRA's matrices that is zeroed."""
    mask_prompt: bool = True
    """Whether the loss counts only the answers."""
    seed: int = 0
    save_every: int = 50
    """Steps between checkpoints."""
    validate_every: int = 50
    """Steps between validations."""
    accumulation: int = 1
    """Batches whose gradients are accumulated for one update."""
    recompute: bool = False
    """Whether activations are recomputed instead of kept (gradient checkpointing): less memory, more time."""
    beta: float = 0.1
    """For pairs (DPO): weight of the divergence from the original model."""

    def validate(self) -> None:
        """Refuse a value out of range.

        Raises:
            ValidationError: Names the field.
        """
        for name, (least, most) in _INTEGER_RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValidationError.in_field(name, f"must be from {least} to {most} (got {value})")
        for name, (low, high) in _FLOAT_RANGES.items():
            number = getattr(self, name)
            if not (low <= number <= high) or (number == low and name not in _MAY_BE_ZERO):
                raise ValidationError.in_field(
                    name, f"must be {'from' if name in _MAY_BE_ZERO else 'above'} {low:g} to {high:g} (got {number:g})"
                )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, from 1: linear warm-up over 5 % of the steps, at most 100, then decay."""
        warm_up = max(1, min(100, self.steps // 20))
        if step <= warm_up:
            return self.learning_rate * step / warm_up
        return self.learning_rate * (1 - 0.9 * (step - warm_up) / max(1, self.steps - warm_up))

    def as_fields(self) -> dict[str, object]:
        """Return name to JSON value of all settings."""
        return {**attrs.asdict(self), "method": self.method.value}


@attrs.frozen
class TuningChoices:
    """The user's choices of settings; None means the default."""

    method: Method = Method.LORA
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    layers: int | None = None
    rank: int | None = None
    scale: float | None = None
    dropout: float | None = None
    learning_rate: float | None = None
    max_length: int | None = None
    mask_prompt: bool | None = None
    seed: int = 0
    save_every: int | None = None
    validate_every: int | None = None
    accumulation: int | None = None
    recompute: bool = False
    beta: float | None = None

    def settings(
        self, config: Mapping[str, object], examples: int, context_length: int | None, *, pairs: bool = False
    ) -> TuningSettings:
        """Return the settings of a run.

        Args:
            config: The model's ``config.json``.
            examples: Number of training examples.
            context_length: The model's context window, tokens; None when unknown.
            pairs: Whether the examples are pairs of a better and a worse answer.

        Raises:
            ValidationError: A value is out of range, or two options exclude each other.
        """
        if self.steps is not None and self.epochs is not None:
            raise ValidationError("iters: say either iters or epochs", options=("iters", "epochs"))
        if self.epochs is not None and not 0 < self.epochs <= _MOST_EPOCHS:
            raise ValidationError.in_field("epochs", f"must be above 0 to {_MOST_EPOCHS} (got {self.epochs:g})")
        if self.batch_size is not None and self.batch_size > examples:
            raise ValidationError.in_field(
                "batch_size", f"a batch of {self.batch_size} takes more than the {examples} examples there are"
            )
        shape = NetworkShape.of(config)
        batch_size = min(_USUAL_BATCH, examples) if self.batch_size is None else self.batch_size
        epoch_steps = math.ceil(examples / max(1, batch_size * (self.accumulation or 1)))
        steps = math.ceil(self.epochs * epoch_steps) if self.epochs is not None else self.steps
        max_length = _USUAL_LENGTH if self.max_length is None else self.max_length
        chosen = {name: getattr(self, name) for name in _PASSED_ON if getattr(self, name) is not None}
        settings = TuningSettings(
            method=self.method,
            steps=_usual_steps(epoch_steps) if steps is None else steps,
            batch_size=batch_size,
            layers=shape.layers if self.layers is None else min(self.layers, shape.layers),
            max_length=min(max_length, context_length or _MOST_TOKENS),
            learning_rate=_usual_rate(shape, self.method, pairs) if self.learning_rate is None else self.learning_rate,
            recompute=self.recompute,
            **chosen,
        )
        settings.validate()
        return settings


_PASSED_ON = ("rank", "scale", "dropout", "mask_prompt", "seed", "save_every", "validate_every", "accumulation", "beta")
"""Choices that are passed on unchanged."""
_USUAL_BATCH, _USUAL_LENGTH, _MOST_TOKENS, _MOST_EPOCHS = 4, 2048, 10**7, 10_000
_FEW_STEPS, _FEW_EPOCHS, _USUAL_EPOCHS = 200, 60, 3


def _usual_steps(epoch_steps: int) -> int:
    """Return the default number of updates: three epochs, or for few examples 200 updates, but at most 60 epochs."""
    return max(_USUAL_EPOCHS * epoch_steps, min(_FEW_STEPS, _FEW_EPOCHS * epoch_steps))


def _usual_rate(shape: "NetworkShape", method: Method, pairs: bool) -> float:
    """Return the default learning rate: higher for narrow networks, lower for pairs and for full training."""
    rate = min(3e-3, 2e-4 * (4096 / shape.width) ** 0.75) / (10 if pairs else 1)
    return float(f"{rate if method is not Method.FULL else rate / 20:.1g}")


@attrs.frozen
class NetworkShape:
    """The sizes of a network that determine the memory of its training."""

    width: int
    """Hidden size."""
    layers: int
    inner: int
    """Intermediate size of the MLP."""
    heads: int
    """Attention heads."""
    vocabulary: int
    """Tokens of the vocabulary."""

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "NetworkShape":
        """Return the sizes in ``config.json``, usual ones for what it does not state."""
        values = text_section(config)

        def count(usual: int, *names: str) -> int:
            stated = (values.get(name) for name in names)
            return next((value for value in stated if type(value) is int and value > 0), usual)

        width = count(2048, "hidden_size", "n_embd", "d_model")
        return cls(
            width=width,
            layers=count(32, "num_hidden_layers", "n_layer", "n_layers"),
            inner=count(4 * width, "intermediate_size", "n_inner"),
            heads=count(16, "num_attention_heads", "n_head"),
            vocabulary=count(128_000, "vocab_size"),
        )


_NUMBER = 4
"""Bytes of a 32-bit number, as training uses."""


def training_bytes(shape: NetworkShape, settings: TuningSettings, longest: int, weight_bytes: int) -> int:
    """Return an upper estimate of the memory of training besides the model's weights, bytes.

    Args:
        shape: The sizes of the network.
        settings: The settings of the run.
        longest: Tokens of the longest example, after truncation.
        weight_bytes: Size of the model's weights.
    """
    tokens = settings.batch_size * longest
    layer_bytes = tokens * (16 * shape.width + 6 * shape.inner + 3 * shape.heads * longest) * _NUMBER
    kept_layers = settings.layers if not settings.recompute else 1.5 + settings.layers / 16
    logits = 4 * tokens * shape.vocabulary * _NUMBER
    if settings.method is Method.FULL:
        trained = 4 * weight_bytes * settings.layers // max(1, shape.layers)
    else:
        adapter_layer = settings.rank * (8 * shape.width + 3 * (shape.width + shape.inner)) * _NUMBER
        trained = 4 * settings.layers * adapter_layer
        if settings.method is Method.DORA:
            kept_layers = kept_layers * 1.5
    return int(layer_bytes * kept_layers) + logits + trained


@attrs.frozen
class ExampleLengths:
    """Lengths of the encoded examples, in tokens."""

    longest: int
    """The longest example, after truncation."""
    total: int
    """All examples together, after truncation."""
    learned: int
    """Tokens that the loss counts."""
    cut: tuple[int, ...] = ()
    """Line numbers of the truncated examples."""
    longest_uncut: int = 0
    """The longest example before truncation."""


@attrs.frozen
class TrainingPoint:
    """The figures at a step; None for what was not measured there."""

    step: int
    """From 1; 0 for the state before training."""
    seconds: float
    """Time since the start of training, without interrupted earlier runs."""
    loss: float | None = None
    """Mean training loss over the learned tokens of the steps since the previous point."""
    valid_loss: float | None = None
    """Validation loss."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@attrs.frozen
class TrainingResult:
    """The result of a run."""

    steps: int
    """Completed steps, those before a resumption included."""
    resumed_at: int | None
    """The last step of the earlier run that this one resumed; None for a new run."""
    stopped: bool
    """Whether the run ended before its last step."""
    points: tuple[TrainingPoint, ...]
    trained_parameters: int
    tokens: int
    """Training tokens computed in this run."""
    seconds: float
    peak_bytes: int
    """Peak memory of all arrays, the model included."""

    @property
    def loss(self) -> float | None:
        """The last training loss; None without any."""
        return next((point.loss for point in reversed(self.points) if point.loss is not None), None)

    @property
    def first_loss(self) -> float | None:
        """The first training loss; None without any."""
        return next((point.loss for point in self.points if point.loss is not None), None)

    @property
    def first_valid_loss(self) -> float | None:
        """The first validation loss; None without any."""
        return next((point.valid_loss for point in self.points if point.valid_loss is not None), None)

    @property
    def valid_loss(self) -> float | None:
        """The last validation loss; None without any."""
        return next((point.valid_loss for point in reversed(self.points) if point.valid_loss is not None), None)


def perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss, in nats per token; infinity where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
