"""The contract of the text generator, run on the double and on MLX."""

import math
import threading
import time
from collections.abc import Iterator

import pytest
from doubles.event_log import InMemoryEventLog
from doubles.text_generator import InMemoryTextGenerator
from models.answers import read
from models.tiny_models import build

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.text_generator import TextGenerator
from mlxk.domain.errors import CapabilityError, ContextLengthError, ExecutionError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.generation.request import Finished, FinishReason, GenerationRequest, PromptDelta, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
PROMPT = "The quick brown fox jumps over the lazy dog and runs home"
LONG = "word " * 2000
WINDOW = 8192
TIMEOUT_SECONDS = 10.0


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama", max_position_embeddings=WINDOW)


@pytest.fixture(params=["in memory", "mlx"])
def generator(request: pytest.FixtureRequest) -> Iterator[TextGenerator]:
    if request.param == "mlx":
        adapter: TextGenerator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    else:
        adapter = InMemoryTextGenerator(step_seconds=0.0005, context_length=WINDOW, vision=False)
    yield adapter
    adapter.close()


def asking(handle: ModelHandle, prompt: str = PROMPT, **settings: object) -> GenerationRequest:
    settings = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True, **settings}
    return GenerationRequest(handle, prompt, GenerationSettings(**settings))  # type: ignore[arg-type]


def test_an_answer_is_pieces_of_text_and_then_one_end(generator: TextGenerator, handle: ModelHandle) -> None:
    events = list(generator.submit(asking(handle)))
    assert all(isinstance(event, TextDelta) and event.text for event in events[:-1])
    assert isinstance(events[-1], Finished)
    assert len(events) > 1


def test_the_prompt_is_emitted_first_when_it_is_asked_for(generator: TextGenerator, handle: ModelHandle) -> None:
    for prompt, logprobs in ((PROMPT, None), (PROMPT, 2), ("word", 0)):
        first, *others = generator.submit(asking(handle, prompt, echo=True, logprobs=logprobs))
        assert isinstance(first, PromptDelta)
        assert first.text.strip() == prompt
        assert (len(first.logprobs) > 0) == (logprobs is not None)
        assert "".join(each.token.text for each in first.logprobs) in {"", first.text}
        assert [each.token.logprob for each in first.logprobs[:1]] == [0.0][: len(first.logprobs)]
        assert not any(isinstance(event, PromptDelta) for event in others)


def test_a_stream_that_has_ended_stays_ended(generator: TextGenerator, handle: ModelHandle) -> None:
    stream = generator.submit(asking(handle))
    assert list(stream)
    assert list(stream) == []
    assert stream.take() == ()


def test_the_same_question_gets_the_same_greedy_answer(generator: TextGenerator, handle: ModelHandle) -> None:
    assert read(generator.submit(asking(handle))).text == read(generator.submit(asking(handle))).text


def test_a_setting_out_of_range_is_refused_by_name(generator: TextGenerator, handle: ModelHandle) -> None:
    with pytest.raises(ValidationError, match="top_p"):
        generator.submit(asking(handle, top_p=2.0))


def test_a_prompt_longer_than_the_context_window_is_refused(generator: TextGenerator, handle: ModelHandle) -> None:
    with pytest.raises(ContextLengthError, match=str(WINDOW)):
        generator.submit(asking(handle, "word " * (WINDOW + 1)))


def test_a_text_model_refuses_images(generator: TextGenerator, handle: ModelHandle) -> None:
    message = Message(Role.USER, "What is this?", parts=(DecodedImage(1, 1, bytes(3), "0" * 64), "What is this?"))
    with pytest.raises(CapabilityError):
        generator.submit(GenerationRequest(handle, Conversation((message,))))


def test_an_answer_stops_at_its_token_limit_and_says_so(generator: TextGenerator, handle: ModelHandle) -> None:
    finished = read(generator.submit(asking(handle, max_tokens=3))).finished
    assert finished.reason is FinishReason.LENGTH
    assert finished.token_limit == 3
    assert finished.usage.completion_tokens == 3
    assert finished.usage.prompt_tokens > 0


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(generator: TextGenerator, handle: ModelHandle) -> None:
    whole = read(generator.submit(asking(handle))).text
    stop = whole[5:9]
    answer = read(generator.submit(asking(handle, stop=(stop,))))
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finished.reason is FinishReason.STOP


def test_a_cancelled_answer_ends_as_cancelled(generator: TextGenerator, handle: ModelHandle) -> None:
    stream = generator.submit(asking(handle, LONG, max_tokens=4000))
    assert any(isinstance(event, TextDelta) for event in stream)  # a slow machine reports the prompt first
    stream.cancel()
    stream.cancel()
    answer = read(stream)
    assert answer.finished.reason is FinishReason.CANCELLED
    assert answer.finished.usage.completion_tokens < 4000
    stream.cancel()


def test_leaving_the_block_gives_the_answer_up(generator: TextGenerator, handle: ModelHandle) -> None:
    with generator.submit(asking(handle, LONG, max_tokens=4000)) as stream:
        assert any(isinstance(event, TextDelta) for event in stream)
    assert read(stream).finished.reason is FinishReason.CANCELLED


def test_answers_run_side_by_side_and_do_not_disturb_each_other(generator: TextGenerator, handle: ModelHandle) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(4)]
    alone = [read(generator.submit(asking(handle, prompt))).text for prompt in prompts]
    streams = [generator.submit(asking(handle, prompt)) for prompt in prompts]
    assert [read(stream).text for stream in streams] == alone


def test_what_has_come_can_be_taken_without_waiting(generator: TextGenerator, handle: ModelHandle) -> None:
    woken = threading.Semaphore(0)
    stream = generator.submit(asking(handle))
    stream.subscribe(woken.release)
    events = list(stream.take())
    while not events or not isinstance(events[-1], Finished):
        assert woken.acquire(timeout=60)
        events += stream.take()
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text == read(generator.submit(asking(handle))).text


def test_a_listener_is_told_at_once_even_when_all_has_come_already(
    generator: TextGenerator, handle: ModelHandle
) -> None:
    stream = generator.submit(asking(handle, max_tokens=1))
    deadline = time.monotonic() + 60
    told = threading.Event()
    while time.monotonic() < deadline and not told.wait(0.2):
        stream.subscribe(told.set)
    assert told.is_set()
    assert read(stream).finished.usage.completion_tokens == 1


def test_log_probabilities_come_with_the_text_they_belong_to(generator: TextGenerator, handle: ModelHandle) -> None:
    deltas = [event for event in generator.submit(asking(handle, logprobs=1)) if isinstance(event, TextDelta)]
    tokens = [each for delta in deltas for each in delta.logprobs]
    assert b"".join(each.token.utf8 for each in tokens).decode("utf-8", "replace") == "".join(d.text for d in deltas)
    assert all(each.token.logprob <= 0 and len(each.alternatives) == 1 for each in tokens)


def test_a_closed_generator_refuses_and_can_be_closed_again(generator: TextGenerator, handle: ModelHandle) -> None:
    running = generator.submit(asking(handle, LONG, max_tokens=4000))
    generator.close()
    generator.close()
    assert read(running).finished.reason is FinishReason.CANCELLED
    with pytest.raises(ExecutionError):
        generator.submit(asking(handle))


def test_a_generator_that_was_never_used_responds_and_has_no_models(generator: TextGenerator) -> None:
    state = generator.state(TIMEOUT_SECONDS)
    assert state.responding
    assert (state.running, state.waiting, state.models) == (0, 0, ())
    assert (state.prompt_tokens, state.cached_tokens, state.generated_tokens) == (0, 0, 0)
    assert (state.ended, state.failed) == (0, 0)


def test_a_model_stays_loaded_after_its_sequence(generator: TextGenerator, handle: ModelHandle) -> None:
    read(generator.submit(asking(handle, max_tokens=2)))
    state = generator.state(TIMEOUT_SECONDS)
    assert state.responding
    assert state.models == (handle,)


def test_a_running_sequence_is_counted(generator: TextGenerator, handle: ModelHandle) -> None:
    with generator.submit(asking(handle, LONG, max_tokens=900)) as stream:
        next(stream)
        assert generator.state(TIMEOUT_SECONDS).running == 1
    read(stream)
    assert generator.state(TIMEOUT_SECONDS).running == 0


def test_an_idle_model_is_unloaded_on_request_and_loaded_again(generator: TextGenerator, handle: ModelHandle) -> None:
    read(generator.submit(asking(handle, max_tokens=2)))
    assert generator.unload(handle) == (handle,)
    assert generator.unload() == ()
    assert generator.state(TIMEOUT_SECONDS).models == ()
    read(generator.submit(asking(handle, max_tokens=2)))
    assert generator.unload() == (handle,)


def test_a_model_in_use_is_not_unloaded(generator: TextGenerator, handle: ModelHandle) -> None:
    with generator.submit(asking(handle, LONG, max_tokens=900)) as stream:
        next(stream)
        assert generator.unload() == ()
        assert generator.state(TIMEOUT_SECONDS).models == (handle,)
    read(stream)


def test_a_loaded_model_stays_until_its_keep_alive_is_over(generator: TextGenerator, handle: ModelHandle) -> None:
    def residents() -> dict[str, float | None]:
        state = generator.state(TIMEOUT_SECONDS)
        return {each.handle.name: each.idle_seconds_left for each in state.residents}

    generator.load(GenerationRequest(handle, "", keep_alive_seconds=3600.0))
    left = residents()[handle.name]
    assert left is not None
    assert 3000 < left <= 3600
    generator.load(GenerationRequest(handle, "", keep_alive_seconds=math.inf))
    assert residents() == {handle.name: None}
    generator.load(GenerationRequest(handle, "", keep_alive_seconds=0.0))
    eventually_gone = time.monotonic() + TIMEOUT_SECONDS
    while residents() and time.monotonic() < eventually_gone:
        time.sleep(0.01)
    assert residents() == {}


def test_the_tokens_of_the_prompt_are_known_from_the_start(generator: TextGenerator, handle: ModelHandle) -> None:
    stream = generator.submit(asking(handle))
    known = stream.prompt_tokens
    assert known == list(stream)[-1].usage.prompt_tokens > 0  # type: ignore[union-attr]


def test_the_stop_string_that_was_found_is_named(generator: TextGenerator, handle: ModelHandle) -> None:
    text = read(generator.submit(asking(handle))).text
    stop = text[3:6]
    end = list(generator.submit(asking(handle, stop=("\0never", stop))))[-1]
    assert isinstance(end, Finished)
    assert end.stop_sequence == stop


def test_a_model_in_use_goes_when_its_use_has_ended_if_that_is_asked_for(
    generator: TextGenerator, handle: ModelHandle
) -> None:
    stream = generator.submit(asking(handle))
    assert generator.unload(handle, once_idle=True) == ()
    assert isinstance(list(stream)[-1], Finished)
    until = time.monotonic() + TIMEOUT_SECONDS
    while generator.state(TIMEOUT_SECONDS).models and time.monotonic() < until:
        time.sleep(0.01)
    assert generator.state(TIMEOUT_SECONDS).models == ()
