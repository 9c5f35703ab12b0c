"""Training of models: mlx-lm's LoRA and DoRA layers, MLX's AdamW, and our own training loop.

The loop is ours because an interrupted run that is resumed must have the same result as an uninterrupted one: it
restores the optimizer's state, the random numbers and the position in the data, which mlx-lm's trainer starts anew.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn
from mlx import optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.tuner.trainer import grad_checkpoint
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.library_imports import contained, failed
from mlxk.adapters.mlx.loaders import loader_of
from mlxk.adapters.mlx.loading.adapted import adapted
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import identity_of, read_config, require_regular
from mlxk.adapters.mlx.loading.text_model import LoadedModel, assemble_tokenizer, load_tokenizer
from mlxk.adapters.mlx.tuning.examples import EncodedExample, ExampleEncoder, measured
from mlxk.adapters.mlx.tuning.fusing import fuse
from mlxk.adapters.mlx.tuning.objective import Losses, Objective, number, weighted
from mlxk.adapters.mlx.tuning.state import (
    TrainingState,
    read_state,
    read_unfinished,
    remove_state,
    write_adapter,
    write_state,
)
from mlxk.application.ports.system import Progress
from mlxk.application.ports.tuning import ModelTuner, TrainedModel, TrainingJob, UnfinishedTraining
from mlxk.domain.errors import ExecutionError, MlxkError, ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.tuning.data import batches
from mlxk.domain.tuning.examples import Example
from mlxk.domain.tuning.training import (
    ExampleLengths,
    Method,
    TrainingPoint,
    TrainingResult,
    TuningSettings,
)

_REPORT_SECONDS = 1.0
_WEIGHT_DECAY, _LARGEST_GRADIENT = 0.01, 1.0
_MOST_VALIDATED = 200
"""Maximum number of examples in a validation."""
_POINTS = 100
"""Number of loss points that a run keeps, besides those of validations."""


class MlxModelTuner(ModelTuner):
    """Trains on the calling thread.

    Args:
        read_images: Returns the conversation of an example with its images, decoded.
    """

    def __init__(self, read_images: Callable[[Example], Conversation] = attrgetter("conversation")) -> None:
        self._read_images = read_images

    def lengths(
        self, model: TrainedModel, examples: tuple[Example, ...], max_length: int, *, mask_prompt: bool
    ) -> ExampleLengths:
        with contained(model.handle.name):
            encoder = self._encoder(model, max_length, mask_prompt=mask_prompt)
            return measured([encoder.encode(each) for each in examples])

    def unfinished(self, directory: str) -> UnfinishedTraining | None:
        return read_unfinished(directory)

    def train(
        self, job: TrainingJob, report: Callable[[TrainingPoint], None], stopped: Callable[[], bool], *, resume: bool
    ) -> TrainingResult:
        settings = job.settings
        with _released(job.model.handle):
            mx.reset_peak_memory()
            model = _loaded(job.model, job.form)
            losses = self._losses(model)
            encoder = losses.encoder(model, settings.max_length, mask_prompt=settings.mask_prompt)
            train = [encoder.encode(each) for each in job.train]
            valid = [encoder.encode(each) for each in job.valid[:_MOST_VALIDATED]]
            network = _prepared(losses.network, model.name, settings)
            with _recomputing(network, wanted=settings.recompute):
                run = _Run(job, network, Objective(losses, settings.beta), train, valid, report)
                run.begin(resume=resume)
                result = run.until(stopped)
            write_adapter(job, network)
            return result

    def loss(
        self, model: TrainedModel, adapter: str | None, form: WeightForm, examples: tuple[Example, ...], max_length: int
    ) -> float:
        with _released(model.handle):
            loaded = _loaded(model, form)
            loaded = loaded if adapter is None else adapted(loaded, adapter, form)
            losses = self._losses(loaded)
            encoder = losses.encoder(loaded, max_length, mask_prompt=True)
            losses.network.eval()
            encoded = [encoder.encode(attrs.evolve(each, rejected=None)) for each in examples]
            return Objective(losses, 0.0).mean(encoded, 1)

    def fuse(
        self, model: TrainedModel, adapter: str, target: str, progress: Progress, *, dequantize: bool, exact: bool
    ) -> int:
        with _released(model.handle):
            return fuse(model, adapter, target, progress, dequantize=dequantize, exact=exact)

    def _losses(self, model: LoadedModel) -> Losses:
        if model.vision is None:
            return Losses(model)
        from mlxk.adapters.mlx.tuning.images import ImageLosses  # only now: it imports mlx-vlm

        return ImageLosses(model, self._read_images)

    def _encoder(self, model: TrainedModel, max_length: int, *, mask_prompt: bool) -> ExampleEncoder:
        """Return the encoder of examples, without loading the model's weights."""
        handle = model.handle
        require_regular(handle)
        config = read_config(handle)
        with translated(handle, "has an architecture that is not known"):
            wrapped = load_tokenizer(handle, config.get("eos_token_id"))
            tokenizer = assemble_tokenizer(handle, identity_of(handle), wrapped, config)
            if model.backend != Library.MLX_VLM.value:
                return ExampleEncoder(tokenizer, max_length, mask_prompt=mask_prompt)
            from mlxk.adapters.mlx.tuning.images import ImageExampleEncoder  # only now: both import mlx-vlm
            from mlxk.adapters.mlx.vision.loader import load_template

            template = load_template(handle, config, wrapped)
        return ImageExampleEncoder(tokenizer, template, self._read_images, max_length, mask_prompt=mask_prompt)


def _loaded(model: TrainedModel, form: WeightForm) -> LoadedModel:
    loaded: LoadedModel = loader_of(Library(model.backend))(model.handle, form)
    return loaded


@contextlib.contextmanager
def _released(model: ModelHandle) -> Iterator[None]:
    """Suppress the libraries' output, translate their exceptions, and release MLX's cached memory afterwards."""
    try:
        with contained(model.name):
            yield
    except (MlxkError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise failed(error, f"Training '{model.label}'") from error
    finally:
        mx.clear_cache()


def _prepared(network: nn.Module, name: str, settings: TuningSettings) -> nn.Module:
    """Freeze the network except for the layers or adapters to train, which are added; return it.

    Raises:
        ValidationError: The architecture or the quantization does not allow the method.
    """
    mx.random.seed(settings.seed)
    for module in network.modules():  # some of mlx-vlm's modules lack attributes of ``nn.Module``
        vars(module).setdefault("_no_grad", set())
        vars(module).setdefault("_training", False)
    network.freeze()
    layers = getattr(network, "layers", None)
    if not layers:
        raise ValidationError(f"'{name}' is of an architecture whose layers cannot be trained")
    count = min(settings.layers, len(layers))
    if settings.method is Method.FULL:
        if any(isinstance(each, nn.QuantizedLinear) for each in network.modules()):
            raise ValidationError.in_field(
                "method", "a quantized model is trained beside its weights", hint="Train it with lora or dora."
            )
        for layer in layers[-count:]:
            layer.unfreeze()
        return network
    parameters = {"rank": settings.rank, "scale": settings.scale, "dropout": settings.dropout}
    try:
        linear_to_lora_layers(network, count, parameters, use_dora=settings.method is Method.DORA)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValidationError(f"the layers of '{name}' take no {settings.method.value}: {str(error)[:200]}") from error
    if not tree_flatten(network.trainable_parameters()):
        raise ValidationError(f"'{name}' has no layers that can be adapted")
    return network


@contextlib.contextmanager
def _recomputing(network: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Have layers recompute activations for gradients inside the block; undoes mlx-lm's change of their classes."""
    if not wanted:
        yield
        return
    kinds = {type(layer) for layer in network.layers}
    before = {kind: kind.__call__ for kind in kinds}
    try:
        for kind in kinds:
            grad_checkpoint(next(layer for layer in network.layers if type(layer) is kind))
        yield
    finally:
        for kind, call in before.items():
            kind.__call__ = call


@attrs.define
class _Run:
    """A training run in progress."""

    job: TrainingJob
    network: nn.Module
    objective: Objective
    train: list[EncodedExample]
    valid: list[EncodedExample]
    report: Callable[[TrainingPoint], None]
    optimizer: Any = attrs.field(init=False)
    points: list[TrainingPoint] = attrs.field(factory=list)
    step: int = 0
    resumed_at: int | None = None
    tokens: int = 0
    _began: float = attrs.field(factory=time.monotonic)
    _losses: list[tuple[float, int]] = attrs.field(factory=list)
    """See ``TrainingState.losses``."""
    _reported: tuple[float, int, int] = (0.0, 0, 0)
    """Time, step and number of tokens at the last report."""

    def begin(self, *, resume: bool) -> None:
        """Initialize the optimizer, or restore the state of an interrupted run."""
        self.network.eval()
        self.objective.refer([*self.train, *self.valid])
        self.optimizer = optim.AdamW(learning_rate=0.0, weight_decay=_WEIGHT_DECAY, bias_correction=True)
        self.optimizer.init(self.network.trainable_parameters())
        if resume:
            state = read_state(self.job.directory)
            self.network.update(tree_unflatten(list(state.weights.items())))
            self.optimizer.state = state.optimizer
            self.step = self.resumed_at = state.step
            self.points, self._losses = list(state.points), list(state.losses)
        else:
            remove_state(self.job.directory)
        mx.eval(self.network.parameters(), self.optimizer.state)
        self._reported = (self._began, self.step, 0)

    def until(self, stopped: Callable[[], bool]) -> TrainingResult:
        """Make the remaining steps, until ``stopped`` returns true after one."""
        settings = self.job.settings
        if self.step == 0:
            self._report(kept=bool(self.valid), validated=True)
        gradients = nn.value_and_grad(self.network, self.objective.loss)
        stream = batches(len(self.train), settings.batch_size, settings.seed)
        for _ in range(self.step * settings.accumulation):
            next(stream)
        every = max(1, settings.steps // _POINTS)
        ended = False
        self.network.train()
        while self.step < settings.steps and not ended:
            self._update(gradients, [next(stream)[1] for _ in range(settings.accumulation)])
            with self._saved_on_failure():
                ended = stopped()
            last = ended or self.step == settings.steps
            validated = bool(self.valid) and (last or self.step % settings.validate_every == 0)
            with self._saved_on_failure():
                self._report(kept=last or validated or self.step % every == 0, validated=validated)
            if self.step % settings.save_every == 0 and not last:
                self.save()
        return self._result()

    def save(self) -> None:
        """Write the state after the current step."""
        weights = dict(tree_flatten(self.network.trainable_parameters()))
        state = TrainingState(self.step, weights, self.optimizer.state, tuple(self.points), self._losses)
        write_state(self.job.directory, state, self.job.identity, self.job.settings.as_fields())

    def _result(self) -> TrainingResult:
        return TrainingResult(
            steps=self.step,
            resumed_at=self.resumed_at,
            stopped=self.step < self.job.settings.steps,
            points=tuple(self.points),
            trained_parameters=sum(array.size for _, array in tree_flatten(self.network.trainable_parameters())),
            tokens=self.tokens,
            seconds=time.monotonic() - self._began,
            peak_bytes=mx.get_peak_memory(),
        )

    @contextlib.contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Write the state if the block, between two steps, raises an exception."""
        try:
            yield
        except BaseException:
            self.save()
            raise

    def _update(self, gradients: Callable[..., Any], indices: list[tuple[int, ...]]) -> None:
        """Make one step; its random numbers depend on the seed and the step alone."""
        mx.random.seed(self.job.settings.seed << 32 | self.step)
        total: Any = None
        for batch in indices:
            examples = [self.train[index] for index in batch]
            prepared, count = self.objective.batch(examples)
            loss, added = gradients(self.network, prepared)
            total = added if total is None else tree_map(mx.add, total, added)
            mx.eval(total, loss)
            value = number(loss)
            if not value < float("inf"):
                raise ExecutionError(
                    f"the loss is no longer a number after {self.step} steps",
                    hint="Train with a lower learning rate, or a smaller scale.",
                )
            self._losses.append((value, count))
            self.tokens += sum(_length(each) for each in examples)
        if len(indices) > 1:
            total = tree_map(lambda each: each / len(indices), total)
        total, _ = optim.clip_grad_norm(total, _LARGEST_GRADIENT)
        self.optimizer.learning_rate = self.job.settings.learning_rate_at(self.step + 1)
        self.optimizer.update(self.network, total)
        mx.eval(self.network.trainable_parameters(), self.optimizer.state)
        self.step += 1

    def _report(self, *, kept: bool, validated: bool) -> None:
        """Report a point that is kept, or another one if the last report was a second ago or more."""
        now = time.monotonic()
        reported_at, step, tokens = self._reported
        if not kept and now - reported_at < _REPORT_SECONDS:
            return
        valid_loss = None
        if validated and self.valid:
            self.network.eval()
            valid_loss = self.objective.mean(self.valid, self.job.settings.batch_size)
            self.network.train()
        seconds, steps = now - reported_at, self.step - step
        point = TrainingPoint(
            step=self.step,
            seconds=now - self._began,
            loss=weighted(self._losses),
            valid_loss=valid_loss,
            tokens_per_second=(self.tokens - tokens) / seconds if steps and seconds else None,
            seconds_left=(self.job.settings.steps - self.step) * seconds / steps if steps else None,
        )
        if kept:
            self._losses = []
            self.points.append(point)
        self._reported = (time.monotonic(), self.step, self.tokens)
        self.report(point)


def _length(example: EncodedExample) -> int:
    return len(example.tokens) + (0 if example.worse is None else len(example.worse.tokens))
