"""The real OpenAI SDK against our server on a loopback socket, streaming and not."""

from collections.abc import Iterator, Sequence

import openai
import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from serving.parts import BASE_MODEL, CHAT_MODEL, Parts
from serving.running import RunningServer, eventually

from mlxk.domain.errors import ContextLengthError, ExecutionError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.settings import ServerSettings

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "one two three"}]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """Run a server that echoes."""
    with RunningServer(Parts()) as running:
        yield running


def client(server: RunningServer, key: str = "any", retries: int = 0) -> openai.OpenAI:
    """Return the SDK's client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=retries)


def test_chat(server: RunningServer) -> None:
    with client(server) as sdk:
        answer = sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, temperature=0, user="ada")
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.system_fingerprint


def test_chat_streamed_says_the_same(server: RunningServer) -> None:
    with client(server) as sdk:
        whole = sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, n=2, logprobs=True, top_logprobs=1)
        chunks = list(
            sdk.chat.completions.create(
                model=CHAT_MODEL,
                messages=MESSAGES,
                n=2,
                logprobs=True,
                top_logprobs=1,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason
        tokens = [token for each in mine if each.logprobs for token in each.logprobs.content or []]
        assert choice.logprobs is not None
        assert tokens == choice.logprobs.content


def test_the_stream_helper_of_the_sdk_understands_us(server: RunningServer) -> None:
    with client(server) as sdk, sdk.chat.completions.stream(model=CHAT_MODEL, messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content == "one two three"
    assert "content.done" in kinds


def test_completions(server: RunningServer) -> None:
    with client(server) as sdk:
        answer = sdk.completions.create(model=BASE_MODEL, prompt=["a b", "c"], n=2, logprobs=1)
        chunks = list(sdk.completions.create(model=BASE_MODEL, prompt="a b", stream=True))
    assert [choice.text for choice in answer.choices] == ["a b", "a b", "c", "c"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["a", " b"]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "a b"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models(server: RunningServer) -> None:
    with client(server) as sdk:
        listed = [model.id for model in sdk.models.list()]
        assert CHAT_MODEL in listed
        assert sdk.models.retrieve(CHAT_MODEL).owned_by == "mlxk"
        with pytest.raises(openai.NotFoundError):
            sdk.models.retrieve("no/such")


def test_errors_are_the_sdks_own(server: RunningServer) -> None:
    with client(server) as sdk:
        with pytest.raises(openai.NotFoundError) as missing:
            sdk.chat.completions.create(model="no/such", messages=MESSAGES)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, moderation={"model": "m"})
        assert (refused.value.code, refused.value.param) == ("parameter_not_supported", "moderation")
        assert refused.value.request_id
        with pytest.raises(openai.UnprocessableEntityError):
            sdk.chat.completions.create(model=BASE_MODEL, messages=MESSAGES)


def test_a_failure_inside_a_stream_is_raised() -> None:
    def failing(request: GenerationRequest) -> Sequence[Token]:
        return ("a", ExecutionError("the model failed"))

    with RunningServer(Parts(InMemoryTextGenerator(failing))) as server, client(server) as sdk:
        stream = sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the model failed"):
            list(stream)


def test_too_long_a_prompt_is_known_by_its_code() -> None:
    def refusing(request: GenerationRequest) -> Sequence[Token]:
        raise ContextLengthError("too long")

    with RunningServer(Parts(InMemoryTextGenerator(refusing))) as server, client(server) as sdk:
        with pytest.raises(openai.BadRequestError) as refused:
            list(sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, stream=True))
        assert refused.value.code == "context_length_exceeded"


def test_a_key_is_sent_as_the_sdk_sends_it() -> None:
    with RunningServer(Parts(settings=ServerSettings(api_keys=("right",)))) as server:
        with client(server, "right") as sdk:
            assert list(sdk.models.list())
        with client(server, "wrong") as sdk, pytest.raises(openai.AuthenticationError):
            sdk.models.list()


def test_leaving_a_stream_frees_the_engine() -> None:
    generator = InMemoryTextGenerator(lambda _: (" word",) * 100_000, 0.002)
    with RunningServer(Parts(generator)) as server, client(server) as sdk:
        stream = sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, stream=True)
        for index, _ in enumerate(stream):
            if index == 3:
                break
        stream.close()
        assert eventually(lambda: generator.state(0.1).running == 0)


def test_a_busy_server_is_asked_again_by_the_sdk_itself() -> None:
    generator = InMemoryTextGenerator(lambda _: (" word",) * 30, 0.01)
    settings = ServerSettings(max_streams=1, max_queue=0)
    with RunningServer(Parts(generator, settings)) as server, client(server, retries=3) as sdk:
        busy = sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, stream=True)
        answer = sdk.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES)
        assert answer.choices[0].finish_reason == "stop"
        busy.close()
