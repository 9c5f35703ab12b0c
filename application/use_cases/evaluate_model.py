"""Measure a model on examples: the loss of their answers, and how many it says exactly."""

import json
from collections.abc import Callable

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.policy import estimate_memory
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.system import Progress
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
AT_A_TIME = 8
"""Answers that are generated together."""


SchemaCheck = Callable[[object], bool]
"""Whether a JSON value keeps to a schema."""


@attrs.frozen
class EvaluateRequest:
    """A model, examples, and what is measured."""

    reference: str
    data: str
    split: str | None = None
    """One of ``SPLITS``; None takes the examples for tests, else those for validation, else all."""
    adapter: str | None = None
    """Absolute directory of an adapter."""
    limit: int | None = None
    """Examples that are measured; None measures all."""
    max_tokens: int = 256
    """Of an answer."""
    max_length: int = MAX_LENGTH
    """Tokens of an example for its loss."""
    fits: SchemaCheck | None = None
    """The check of answers that are to be JSON."""


@attrs.frozen
class EvaluatedAnswer:
    """An answer beside the one that was wanted."""

    line: int
    """Of the example."""
    exact: bool
    is_json: bool
    fits: bool
    """Whether it keeps to the schema; False without one."""


@attrs.frozen
class Evaluation:
    """How well a model does."""

    model: ModelHandle
    split: str
    digest: str
    """Of the data."""
    examples: int
    loss: float
    """Mean over the tokens of the answers, nats."""
    answers: tuple[EvaluatedAnswer, ...]
    """Empty for text, which has no answers."""

    @property
    def perplexity(self) -> float:
        """Of the answers."""
        return perplexity(self.loss)

    def share(self, holds: Callable[[EvaluatedAnswer], bool]) -> float | None:
        """Return the share of the answers of which something holds; None without answers."""
        return sum(map(holds, self.answers)) / len(self.answers) if self.answers else None


@attrs.frozen
class EvaluateModel:
    """Measures one model, with or without an adapter."""

    resolve: ResolveModel
    """Resolves an adapter to its base, with the adapter."""
    describe: DescribeModel
    memory: MemoryProbe
    read: ReadTrainingData
    tuner: Callable[[], ModelTuner]
    generate: GenerateText

    def __call__(self, request: EvaluateRequest, progress: Progress) -> Evaluation:
        """Measure.

        Raises:
            ValidationError: The data is at fault, or has no such split.
            MlxkError: The model cannot be found, loaded or run.
        """
        data = self.read(request.data, progress)
        split, examples = _chosen(data, request)
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
            for start in range(0, len(examples), AT_A_TIME):
                answers += self._answers(details, adapter, examples[start : start + AT_A_TIME], request)
        return Evaluation(model, split, data.digest, len(examples), loss, tuple(answers))

    def _answers(
        self, details: ModelDetails, adapter: str | None, examples: tuple[Example, ...], request: EvaluateRequest
    ) -> list[EvaluatedAnswer]:
        settings = GenerationSettings(max_tokens=request.max_tokens, temperature=0.0)
        options = GenerationOptions(settings, engine_options=EngineOptions(adapter=adapter))
        chats = details.description.can(Capability.CHAT)
        prompts = [self._asked(each) if chats else each.asked.messages[-1].content for each in examples]
        streams = self.generate(details, prompts, options)
        found = []
        for example, stream in zip(examples, streams, strict=True):
            text, calls = "", dict[int, ToolCall]()
            for event in stream:
                if isinstance(event, TextDelta):
                    text += event.text
                elif isinstance(event, ToolCallDelta):
                    before = calls.get(event.index, ToolCall("", ""))
                    arguments = before.arguments + event.call.arguments
                    calls[event.index] = ToolCall(before.name or event.call.name, arguments)
            found.append(_evaluated(example, text, list(calls.values()), request.fits))
        return found

    def _asked(self, example: Example) -> Conversation:
        shown = self.read.images(example)
        return attrs.evolve(shown, messages=shown.messages[:-1])


def _chosen(data: TrainingData, request: EvaluateRequest) -> tuple[str, tuple[Example, ...]]:
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


def _same_calls(got: list[ToolCall], wanted: tuple[ToolCall, ...]) -> bool:
    def plain(call: ToolCall) -> tuple[str, object]:
        try:
            return call.name, json.loads(call.arguments or "{}")
        except ValueError:
            return call.name, call.arguments

    return list(map(plain, got)) == list(map(plain, wanted))
