"""A run of training: its settings and their defaults, the memory it takes, its figures, and what came of it."""

import enum
import math
from collections.abc import Mapping

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.snapshot import text_section


class Method(enum.Enum):
    """What is trained; values are those of mlx-lm's adapters."""

    LORA = "lora"
    """Two small matrices beside each layer."""
    DORA = "dora"
    """The same, and the length of each output's weights."""
    FULL = "full"
    """The weights themselves."""


_WHOLE_RANGES = {
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
_RANGES = {"scale": (0.0, 10_000.0), "dropout": (0.0, 0.99), "learning_rate": (0.0, 10.0), "beta": (0.0, 100.0)}
_MAY_BE_ZERO = frozenset({"dropout"})


@attrs.frozen
class TuningSettings:
    """How a model is trained. What decides the result is all here, and in the data."""

    steps: int
    """Updates of the weights."""
    batch_size: int
    """Examples that are computed at a time."""
    layers: int
    """Layers that are trained, counted from the last one."""
    max_length: int
    """Tokens of an example; longer ones are cut."""
    learning_rate: float
    """Its highest; it rises at the beginning, and falls to a tenth."""
    method: Method = Method.LORA
    rank: int = 8
    scale: float = 2.0
    """What the product of the small matrices is multiplied by."""
    dropout: float = 0.0
    mask_prompt: bool = True
    """Whether only answers are learned."""
    seed: int = 0
    save_every: int = 50
    validate_every: int = 50
    accumulation: int = 1
    """Batches whose gradients make one update."""
    recompute: bool = False
    """Whether what layers computed is computed again instead of kept, which takes less memory and more time."""
    beta: float = 0.1
    """Of pairs: how much it counts that the model moves away from what it was."""

    def validate(self) -> None:
        """Refuse a value out of range.

        Raises:
            ValidationError: Names the field.
        """
        for name, (least, most) in _WHOLE_RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValidationError.in_field(name, f"must be from {least} to {most} (got {value})")
        for name, (low, high) in _RANGES.items():
            number = getattr(self, name)
            if not (low <= number <= high) or (number == low and name not in _MAY_BE_ZERO):
                raise ValidationError.in_field(
                    name, f"must be {'from' if name in _MAY_BE_ZERO else 'above'} {low:g} to {high:g} (got {number:g})"
                )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, from 1: a twentieth of the steps for its rise, the rest for its fall."""
        rise = max(1, min(100, self.steps // 20))
        if step <= rise:
            return self.learning_rate * step / rise
        return self.learning_rate * (1 - 0.9 * (step - rise) / max(1, self.steps - rise))

    def as_fields(self) -> dict[str, object]:
        """Return the values by name, as JSON has them."""
        return {**attrs.asdict(self), "method": self.method.value}


@attrs.frozen
class TuningChoices:
    """What the user has said of the settings; None is left to the program."""

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
            config: Of the model.
            examples: That are trained.
            context_length: Tokens of the model's context window; None when unknown.
            pairs: Whether they are pairs of a better and a worse answer.

        Raises:
            ValidationError: A value is out of range, or two of them exclude each other.
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
        batch_size = self.batch_size or min(_USUAL_BATCH, examples)
        an_epoch = math.ceil(examples / max(1, batch_size * (self.accumulation or 1)))
        steps = math.ceil(self.epochs * an_epoch) if self.epochs is not None else self.steps
        steps = _usual_steps(an_epoch) if steps is None else steps
        stated = {name: getattr(self, name) for name in _STATED if getattr(self, name) is not None}
        made = TuningSettings(
            method=self.method,
            steps=steps,
            batch_size=batch_size,
            layers=shape.layers if self.layers is None else min(self.layers, shape.layers),
            max_length=min(self.max_length or _USUAL_LENGTH, context_length or _MOST_TOKENS),
            learning_rate=_usual_rate(shape, self.method, pairs) if self.learning_rate is None else self.learning_rate,
            recompute=self.recompute,
            **stated,
        )
        made.validate()
        return made


_STATED = ("rank", "scale", "dropout", "mask_prompt", "seed", "save_every", "validate_every", "accumulation", "beta")
_USUAL_BATCH, _USUAL_LENGTH, _MOST_TOKENS, _MOST_EPOCHS = 4, 2048, 10**7, 10_000
_FEW_STEPS, _FEW_EPOCHS, _USUAL_EPOCHS = 200, 60, 3


def _usual_steps(an_epoch: int) -> int:
    """Return the updates of a run: three epochs, and of few examples as many more as make 200, but no more than 60."""
    return max(_USUAL_EPOCHS * an_epoch, min(_FEW_STEPS, _FEW_EPOCHS * an_epoch))


def _usual_rate(shape: "NetworkShape", method: Method, pairs: bool) -> float:
    """Return the learning rate: narrow networks take larger steps, and pairs of answers small ones."""
    rate = min(3e-3, 2e-4 * (4096 / shape.width) ** 0.75) / (10 if pairs else 1)
    return float(f"{rate if method is not Method.FULL else rate / 20:.1g}")


@attrs.frozen
class NetworkShape:
    """What of a network's shape decides how much memory training takes."""

    width: int
    layers: int
    inner: int
    heads: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "NetworkShape":
        """Read it from ``config.json``, with a guess for what that does not state."""
        values = text_section(config)

        def count(usual: int, *names: str) -> int:
            found = (values.get(name) for name in names)
            return next((each for each in found if type(each) is int and each > 0), usual)

        width = count(2048, "hidden_size", "n_embd", "d_model")
        return cls(
            width=width,
            layers=count(32, "num_hidden_layers", "n_layer", "n_layers"),
            inner=count(4 * width, "intermediate_size", "n_inner"),
            heads=count(16, "num_attention_heads", "n_head"),
            vocabulary=count(128_000, "vocab_size"),
        )


_NUMBER = 4
"""Bytes of a number while it is trained."""


def training_bytes(shape: NetworkShape, settings: TuningSettings, longest: int, weight_bytes: int) -> int:
    """Return what training takes beside the weights of the model, bytes; an estimate from above.

    Args:
        shape: Of the network.
        settings: Of the run.
        longest: Tokens of the longest example, after it was cut.
        weight_bytes: Of the model.
    """
    tokens = settings.batch_size * longest
    a_layer = tokens * (16 * shape.width + 6 * shape.inner + 3 * shape.heads * longest) * _NUMBER
    kept = settings.layers if not settings.recompute else 1.5 + settings.layers / 16
    logits = 4 * tokens * shape.vocabulary * _NUMBER
    if settings.method is Method.FULL:
        trained = 4 * weight_bytes * settings.layers // max(1, shape.layers)
    else:
        a_layers = settings.rank * (8 * shape.width + 3 * (shape.width + shape.inner)) * _NUMBER
        trained = 4 * settings.layers * a_layers
        if settings.method is Method.DORA:
            kept = kept * 1.5
    return int(a_layer * kept) + logits + trained


@attrs.frozen
class ExampleLengths:
    """How long the examples are, in tokens, by the model's own template and tokenizer."""

    longest: int
    """After they were cut."""
    total: int
    """Of all examples, after they were cut."""
    learned: int
    """Tokens that are learned."""
    cut: tuple[int, ...] = ()
    """The lines whose example is cut."""
    longest_uncut: int = 0


@attrs.frozen
class TrainingPoint:
    """The figures of a step."""

    step: int
    """From 1; 0 for the state before training."""
    seconds: float
    """Since training began, without earlier runs that were broken off."""
    loss: float | None = None
    """The mean over the learned tokens of the steps since the point before; None at step 0."""
    valid_loss: float | None = None
    """Where it was measured."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@attrs.frozen
class TrainingResult:
    """What came of a run."""

    steps: int
    """That were made, those before a resumption included."""
    resumed_at: int | None
    """The step after which an earlier run was continued; None for one from the beginning."""
    stopped: bool
    """Whether it was ended before all steps were made."""
    points: tuple[TrainingPoint, ...]
    trained_parameters: int
    tokens: int
    """That were computed for training in this run."""
    seconds: float
    peak_bytes: int
    """The most memory that the arrays took at a time, the model included."""

    @property
    def loss(self) -> float | None:
        """The last one of training."""
        return next((each.loss for each in reversed(self.points) if each.loss is not None), None)

    @property
    def first_loss(self) -> float | None:
        """The first one of training."""
        return next((each.loss for each in self.points if each.loss is not None), None)

    @property
    def first_valid_loss(self) -> float | None:
        """The first one of validation."""
        return next((each.valid_loss for each in self.points if each.valid_loss is not None), None)

    @property
    def valid_loss(self) -> float | None:
        """The last one of validation."""
        return next((each.valid_loss for each in reversed(self.points) if each.valid_loss is not None), None)


def perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss, in nats a token; one beyond all numbers is infinite."""
    return math.exp(loss) if loss < 700 else math.inf
