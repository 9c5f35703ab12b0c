"""Evaluate a model on examples: the loss of the wanted answers, and the share that it generates exactly."""

import contextlib
import json
from collections.abc import Callable

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.policy import estimate_memory
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.system import Progress
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.ports.tuning import ModelTuner
from mlxk.application.training_policy import require_suitable, trained_model
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.application.use_cases.tune_model import ReadTrainingData
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, ToolCall
from mlxk.domain.generation.request import TextDelta, ToolCallDelta
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import Capability, ModelDetails, ModelHandle
from mlxk.domain.tuning.data import TEST, TRAIN, VALID, TrainingData
from mlxk.domain.tuning.examples import Example, ExampleKind
from mlxk.domain.tuning.training import perplexity

MAX_LENGTH = 2048
_BATCH_SIZE = 8
"""Answers that are generated at the same time."""


SchemaCheck = Callable[[object], bool]
"""Returns whether a JSON value satisfies a schema."""


@attrs.frozen
class EvaluateRequest:
    """Model, data and options of an evaluation."""

    reference: str
    """The reference of the model, as typed."""
    data: str
    """The path of the data; see ``TrainingFiles.find``."""
    split: str | None = None
    """One of ``SPLITS``; None means the first of test, validation and training that has examples."""
    adapter: str | None = None
    """Absolute directory of an adapter."""
    limit: int | None = None
    """Number of examples; None means all."""
    max_tokens: int = 256
    """Most tokens of a generated answer."""
    max_length: int = MAX_LENGTH
    """Most tokens of an example for its loss."""
    fits: SchemaCheck | None = None
    """The schema of the answers; None for none."""


@attrs.frozen
class EvaluatedAnswer:
    """A generated answer, compared with the wanted one."""

    line: int
    """Line of the example in its file."""
    exact: bool
    """Whether text and tool calls are equal, apart from white space at the ends and the formatting of arguments."""
    is_json: bool
    fits: bool
    """Whether it satisfies the schema; False without one."""


@attrs.frozen
class Evaluation:
    """Result of an evaluation."""

    model: ModelHandle
    split: str
    digest: str
    """Digest of the data."""
    examples: int
    loss: float
    """Mean over the tokens of the wanted answers, nats per token."""
    answers: tuple[EvaluatedAnswer, ...]
    """Empty for examples that are plain text, which have no answers."""

    @property
    def perplexity(self) -> float:
        """Perplexity of the wanted answers."""
        return perplexity(self.loss)

    def share(self, holds: Callable[[EvaluatedAnswer], bool]) -> float | None:
        """Return the share of the answers that satisfy a condition; None without answers."""
        return sum(map(holds, self.answers)) / len(self.answers) if self.answers else None


@attrs.frozen
class EvaluateModel:
    """Evaluates one model, with or without an adapter."""

    resolve: ResolveModel
    """Resolves an adapter to its base, with the adapter."""
    describe: DescribeModel
    memory: MemoryProbe
    read: ReadTrainingData
    tuner: Callable[[], ModelTuner]
    generate: GenerateText

    def __call__(self, request: EvaluateRequest, progress: Progress) -> Evaluation:
        """Measure the loss, then generate answers greedily and compare them.

        Raises:
            ValidationError: The data is invalid, or has no such split.
            MlxkError: The model cannot be found, loaded or run.
        """
        data = self.read(request.data, progress)
        split, examples = _selected(data, request)
        model = self.resolve(request.reference)
        details = self.describe.details(model)
        require_suitable(details.description, data, "measured")
        adapter = request.adapter or model.adapter
        self.generate.compare_base(model, adapter)
        form = estimate_memory(details.description, self.memory, request.max_length).form
        progress.note(f"Measuring the loss of {len(examples)} examples")
        loss = self.tuner().loss(trained_model(details.description), adapter, form, examples, request.max_length)
        answers: list[EvaluatedAnswer] = []
        if data.kind is not ExampleKind.TEXT:
            progress.note(f"Asking {len(examples)} questions")
            for start in range(0, len(examples), _BATCH_SIZE):
                answers += self._answers(details, adapter, examples[start : start + _BATCH_SIZE], request)
        return Evaluation(model, split, data.digest, len(examples), loss, tuple(answers))

    def _answers(
        self, details: ModelDetails, adapter: str | None, examples: tuple[Example, ...], request: EvaluateRequest
    ) -> list[EvaluatedAnswer]:
        settings = GenerationSettings(max_tokens=request.max_tokens, temperature=0.0)
        options = GenerationOptions(settings, engine_options=EngineOptions(adapter=adapter))
        chats = details.description.can(Capability.CHAT)
        prompts = [self._question(each) if chats else each.asked.messages[-1].content for each in examples]
        evaluated = []
        with contextlib.ExitStack() as running:
            streams = [running.enter_context(stream) for stream in self.generate(details, prompts, options)]
            for example, stream in zip(examples, streams, strict=True):
                evaluated.append(_evaluated(example, *_answer(stream), request.fits))
        return evaluated

    def _question(self, example: Example) -> Conversation:
        """Return the conversation of an example with its images, without the wanted answer."""
        conversation = self.read.images(example)
        return attrs.evolve(conversation, messages=conversation.messages[:-1])


def _answer(stream: TextStream) -> tuple[str, list[ToolCall]]:
    """Read a stream to its end; return the text and the tool calls."""
    text, calls = "", dict[int, ToolCall]()
    for event in stream:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, ToolCallDelta):
            before = calls.get(event.index, ToolCall("", ""))
            arguments = before.arguments + event.call.arguments
            calls[event.index] = ToolCall(before.name or event.call.name, arguments)
    return text, list(calls.values())


def _selected(data: TrainingData, request: EvaluateRequest) -> tuple[str, tuple[Example, ...]]:
    """Return the split to evaluate and its examples, up to the limit."""
    splits = {TEST: data.test, VALID: data.valid, TRAIN: data.train}
    split = request.split or next(name for name, examples in splits.items() if examples)
    examples = splits[split]
    if not examples:
        raise ValidationError(f"split: there are no examples for {split} in '{request.data}'", options=("split",))
    return split, examples[: request.limit]


def _evaluated(example: Example, text: str, calls: list[ToolCall], fits: SchemaCheck | None) -> EvaluatedAnswer:
    wanted = example.conversation.messages[-1]
    exact = text.strip() == wanted.content.strip() and _same_calls(calls, wanted.tool_calls)
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return EvaluatedAnswer(example.line, exact, is_json=False, fits=False)
    return EvaluatedAnswer(example.line, exact, is_json=True, fits=fits is not None and fits(value))


def _same_calls(generated: list[ToolCall], wanted: tuple[ToolCall, ...]) -> bool:
    """Whether tool calls are equal, whatever the formatting of their JSON arguments."""

    def parsed(call: ToolCall) -> tuple[str, object]:
        try:
            return call.name, json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            return call.name, call.arguments

    return list(map(parsed, generated)) == list(map(parsed, wanted))
