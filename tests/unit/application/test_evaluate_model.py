"""Measuring a model on examples: which split, what counts as said exactly, as JSON, and as the same calls of tools."""

import json
from collections.abc import Sequence

import pytest
from doubles.audio_decoder import InMemoryAudioDecoder
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.event_log import InMemoryEventLog
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.model_tuner import InMemoryModelTuner
from doubles.progress import InMemoryProgress
from doubles.text_generator import InMemoryTextGenerator
from doubles.training_files import InMemoryTrainingFiles
from doubles.video_decoder import InMemoryVideoDecoder
from doubles.workspace_store import InMemoryWorkspaceStore
from serving.parts import CHAT

from mlxk.application.example_images import ExampleImages
from mlxk.application.text_streams import QueuedTextStream
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.evaluate_model import EvaluateModel, EvaluateRequest, Evaluation
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.application.use_cases.tune_model import ReadTrainingData
from mlxk.domain.errors import ExecutionError, ValidationError
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import Finished, FinishReason, GenerationRequest, Timings, ToolCallDelta, Usage
from mlxk.domain.models.footprint import MemoryReading

COMMIT = "a" * 40


def line(question: str, answer: str, calls: Sequence[dict[str, str]] = ()) -> bytes:
    """Return an example: a question and the answer, or calls, to learn."""
    wanted = {"role": "assistant", "content": answer, "tool_calls": [{"function": each} for each in calls]}
    messages = [{"role": "user", "content": question}, wanted]
    return json.dumps({"messages": messages}).encode() + b"\n"


class Caller(InMemoryTextGenerator):
    """Answers with calls of tools: each in two parts, as they arrive."""

    def __init__(self, calls: Sequence[ToolCall]) -> None:
        super().__init__()
        self._calls = calls

    def submit(self, request: GenerationRequest) -> QueuedTextStream:
        stream = Written()
        for index, call in enumerate(self._calls):
            half = len(call.arguments) // 2
            stream.put(ToolCallDelta(index, ToolCall(call.name, call.arguments[:half], "x")))
            stream.put(ToolCallDelta(index, ToolCall("", call.arguments[half:], "")))
        stream.put(Finished(FinishReason.STOP, Usage(1, 1), Timings(0.0, 0.0, 0.0)))
        return stream


class Written(QueuedTextStream):
    """A stream of which all events are there."""

    def cancel(self) -> None:
        """Nothing is going on."""


def evaluated(data: dict[str, bytes], generator: InMemoryTextGenerator, **asked: object) -> Evaluation:
    """Measure a model that answers with what a generator says."""
    files = InMemoryModelFiles({f"/cache/org/chat/{COMMIT}": CHAT})
    cache, workspaces = InMemoryModelCache({"org/chat": CachedModel((COMMIT,))}, files=files), InMemoryWorkspaceStore()
    registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}})
    describe = DescribeModel(files, workspaces, registry, cache, default_owner="org")
    resolve = ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="org")
    images, memory = InMemoryImageReader(), InMemoryMemoryProbe(MemoryReading(2**36, 2**36))
    media = (images, InMemoryAudioDecoder({}), InMemoryVideoDecoder())
    training = InMemoryTrainingFiles(data)
    evaluate = EvaluateModel(
        resolve=resolve,
        describe=describe,
        memory=memory,
        read=ReadTrainingData(training, ExampleImages(training, images)),
        tuner=lambda: InMemoryModelTuner(files),
        generate=GenerateText(resolve, describe, generator, *media, memory, InMemoryEventLog()),
    )
    return evaluate(EvaluateRequest("org/chat", "data", **asked), InMemoryProgress())  # type: ignore[arg-type]


def saying(*texts: str) -> InMemoryTextGenerator:
    """Return a generator that answers with one text after the other."""
    left = iter(texts)
    return InMemoryTextGenerator(lambda _: (next(left),))


ADD = {"name": "add", "arguments": '{"a": 1, "b": 2}'}


@pytest.mark.parametrize(
    ("wanted", "got", "exact"),
    [
        ([ADD], [ToolCall("add", '{"b":2,"a":1}')], True),
        ([ADD], [ToolCall("add", '{"a": 1, "b": 3}')], False),
        ([ADD], [ToolCall("sub", '{"a": 1, "b": 2}')], False),
        ([ADD], [ToolCall("add", '{"a": 1, "b": 2')], False),
        ([ADD], [ToolCall("add", "[" * 100_000)], False),
        ([ADD], [], False),
        ([ADD, {"name": "now", "arguments": "{}"}], [ToolCall("add", ADD["arguments"]), ToolCall("now", "")], True),
        ([ADD, {"name": "now", "arguments": "{}"}], [ToolCall("now", ""), ToolCall("add", ADD["arguments"])], False),
    ],
    ids=[
        "another order of names",
        "another value",
        "another tool",
        "broken off",
        "nested too deep",
        "none",
        "no arguments",
        "swapped",
    ],
)
def test_calls_are_the_wanted_ones_by_what_they_mean_not_by_how_they_are_written(
    wanted: list[dict[str, str]], got: list[ToolCall], exact: bool
) -> None:
    (answer,) = evaluated({"data": line("1+2?", "", wanted)}, Caller(got)).answers
    assert (answer.exact, answer.is_json, answer.fits) == (exact, False, False)


def test_answers_are_exact_json_or_fit_the_schema_each_for_itself() -> None:
    data = b"".join(line(f"{number}?", '{"a": 1}') for number in range(4))
    found = evaluated(
        {"data": data}, saying(' {"a": 1}\n', '{"a": 2}', "[1]", "{"), fits=lambda value: value == {"a": 2}
    )
    assert [(each.exact, each.is_json, each.fits) for each in found.answers] == [
        (True, True, False),
        (False, True, True),
        (False, True, False),
        (False, False, False),
    ]
    assert [each.line for each in found.answers] == [1, 2, 3, 4]
    assert found.share(lambda each: each.exact) == 0.25
    assert not any(each.fits for each in evaluated({"data": data}, saying(*["{}"] * 4)).answers)


def test_answers_in_progress_are_cancelled_when_one_fails() -> None:
    data = b"".join(line(f"{number}?", "yes") for number in range(2))
    scripts = iter([(ExecutionError("broken"),), ("yes",) * 1000])
    generator = InMemoryTextGenerator(lambda _: next(scripts), step_seconds=0.01)
    with pytest.raises(ExecutionError, match="broken"):
        evaluated({"data": data}, generator)
    assert generator.streams[1].cancelled


def test_tests_are_measured_before_validation_and_that_before_the_rest() -> None:
    data = {f"data/{name}.jsonl": line(name, name) for name in ("train", "valid", "test")}
    for split in ("test", "valid", "train"):
        assert evaluated(data, saying(split)).split == split
        assert evaluated(data, saying("train"), split="train").split == "train"
        data.pop(f"data/{split}.jsonl")
        if data:
            with pytest.raises(ValidationError, match=f"^split: there are no examples for {split} in 'data'"):
                evaluated(data, saying(), split=split)


def test_no_more_examples_are_measured_than_asked_for() -> None:
    data = {"data": b"".join(line(f"{number}?", "yes") for number in range(20))}
    assert len(evaluated(data, saying(*["yes"] * 20)).answers) == 20
    limited = evaluated(data, saying(*["yes"] * 20), limit=9)
    assert (limited.examples, len(limited.answers), limited.share(lambda each: each.exact)) == (9, 9, 1.0)
    assert evaluated({"data": b'{"text": "a"}\n' * 2}, saying()).share(lambda each: each.exact) is None


def test_a_model_is_asked_greedily_for_answers_of_the_length_that_is_wanted() -> None:
    for asked, most in (({}, 256), ({"max_tokens": 7}, 7)):
        generator = saying("yes")
        evaluated({"data": line("Is it?", "yes")}, generator, **asked)
        (request,) = generator.requests
        assert (request.settings.temperature, request.settings.max_tokens) == (0.0, most)
