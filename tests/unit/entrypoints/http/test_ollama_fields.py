"""Every field of Ollama's requests, against the types of its SDK: honoured, tolerated and named, or refused."""

import json
import math
from typing import Any

import attrs
import pytest
from ollama import _types as sdk
from serving.ollama import MESSAGES, ask, chat, generate, parts
from serving.parts import BASE_MODEL, CHAT, CHAT_MODEL, EMBEDDING_MODEL, SPEECH_MODEL, Parts

from mlxk.domain.generation.conversation import Conversation, Role
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.settings import SEED_RANGE, Effort
from mlxk.entrypoints.http.ollama import embeddings, fields, pull
from mlxk.entrypoints.http.ollama import generate as generating
from mlxk.entrypoints.http.ollama.chat import CalledFunction, ChatBody, ChatMessage, OllamaCall

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def own(kind: type[Any]) -> set[str]:
    """Return the fields of a class of ours."""
    return {field.name for field in attrs.fields(kind)}


@pytest.mark.parametrize(
    ("published", "known"),
    [
        (sdk.ChatRequest, own(ChatBody)),
        (sdk.GenerateRequest, own(generating.GenerateBody) | set(generating.UNSUPPORTED)),
        (sdk.EmbedRequest, own(embeddings.EmbedBody)),
        (sdk.EmbeddingsRequest, own(embeddings.EmbeddingsBody)),
        (sdk.PullRequest, own(pull.PullBody) | set(pull.UNSUPPORTED)),
        (sdk.Options, own(fields.Options) | set(fields.OPTIONS_WITHOUT_EFFECT)),
        (sdk.Message, own(ChatMessage)),
        (sdk.Message.ToolCall, own(OllamaCall)),
        (sdk.Message.ToolCall.Function, own(CalledFunction)),
    ],
)
def test_no_field_of_the_sdk_is_forgotten(published: Any, known: set[str]) -> None:
    assert set(published.model_fields) - known == set()


@pytest.mark.parametrize(
    ("option", "value", "setting", "expected"),
    [
        ("temperature", 0.5, "temperature", 0.5),
        ("temperature", 0, "temperature", 0.0),
        ("top_p", 0.25, "top_p", 0.25),
        ("top_k", 7, "top_k", 7),
        ("top_k", -1, "top_k", 0),
        ("min_p", 0.1, "min_p", 0.1),
        ("repeat_penalty", 1.2, "repetition_penalty", 1.2),
        ("presence_penalty", -1.5, "presence_penalty", -1.5),
        ("frequency_penalty", 2, "frequency_penalty", 2.0),
        ("seed", 7, "seed", 7),
        ("seed", -1, "seed", None),
        ("seed", -2, "seed", SEED_RANGE - 2),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("stop", "END", "stop", ("END",)),
        ("num_predict", 2, "max_tokens", 2),
        ("num_predict", 2.0, "max_tokens", 2),
        ("num_predict", -1, "max_tokens", None),
        ("num_predict", -2, "max_tokens", None),
        ("num_predict", 0, "max_tokens", None),
        ("typical_p", 1, "temperature", None),
        ("typical_p", 1.0, "temperature", None),
        ("repeat_last_n", -1, "repetition_penalty", None),
        ("repeat_last_n", 0, "repetition_penalty", 1.0),
    ],
)
def test_options_reach_the_engine(option: str, value: Any, setting: str, expected: Any) -> None:
    for send in (chat, generate):
        for more in ({}, {"raw": True} if send is generate else {}):
            answer = send(options={option: value}, **more)
            assert getattr(answer.reached.settings, setting) == expected
            assert answer.ignored == []


def test_repeat_last_n_of_zero_switches_every_penalty_off() -> None:
    penalties = {"repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 1, "repeat_last_n": 0}
    settings = chat(options=penalties).reached.settings
    assert (settings.repetition_penalty, settings.presence_penalty, settings.frequency_penalty) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("option", sorted(fields.OPTIONS_WITHOUT_EFFECT))
def test_options_without_effect_are_named(option: str) -> None:
    for send in (chat, generate):
        assert send(options={option: 3}).ignored == [f"options.{option}"]
        assert send(options={option: None}).ignored == []


def test_unknown_fields_are_named_at_any_depth() -> None:
    message = {**MESSAGES[0], "mood": 1}
    answer = chat(colour=1, options={"foo": 1}, messages=[message], tools=[{**TOOL, "x": 1}])
    assert sorted(answer.ignored) == ["colour", "messages[].mood", "options.foo", "tools[].x"]


@pytest.mark.parametrize(
    ("fields_", "named"),
    [
        ({"truncate": False}, []),
        ({"shift": True}, ["shift"]),
        ({"shift": False}, []),
        ({"options": {"num_ctx": 4096}}, ["options.num_ctx"]),
        ({"options": {"num_ctx": 2048}}, []),
        ({"options": {"repeat_last_n": 64}}, ["options.repeat_last_n"]),
    ],
)
def test_what_cannot_be_done_is_named(fields_: dict[str, Any], named: list[str]) -> None:
    assert chat(**fields_).ignored == named
    assert generate(**fields_).ignored == named


def test_a_prompt_itself_is_never_cut() -> None:
    assert generate(truncate=True).ignored == ["truncate"]
    assert chat(truncate=True).ignored == []


@pytest.mark.parametrize(("given", "limit"), [(100, 100), (0, None), (99999, 99999)])
def test_num_ctx_is_the_window_of_the_request(given: int, limit: int | None) -> None:
    for answer in (chat(options={"num_ctx": given}), generate(options={"num_ctx": given}, raw=True)):
        assert answer.reached is not None
        assert answer.reached.context_limit == limit


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        (30, 30.0),
        (0.5, 0.5),
        (0, 0.0),
        (0.0, 0.0),
        (-1, math.inf),
        (-1.0, math.inf),
        (1e300, math.inf),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("-1s", math.inf),
        ("0", 0.0),
        ("300", 300.0),
        ("-1", math.inf),
        ("500ms", 0.5),
        ("1h0m0.5s", 3600.5),
    ],
)
def test_keep_alive_is_seconds_or_a_duration(value: Any, seconds: float | None) -> None:
    for answer in (chat(keep_alive=value), generate(keep_alive=value), generate(keep_alive=value, raw=True)):
        assert answer.reached is not None
        assert answer.reached.keep_alive_seconds == seconds


@pytest.mark.parametrize(
    ("think", "thinking", "effort"),
    [
        (True, True, None),
        (False, False, None),
        (None, None, None),
        ("", None, None),
        ("low", None, Effort.LOW),
        ("medium", None, Effort.MEDIUM),
        ("high", None, Effort.HIGH),
        ("max", None, Effort.XHIGH),
    ],
)
def test_think_is_whether_or_how_much(think: Any, thinking: bool | None, effort: Effort | None) -> None:
    for answer in (chat(think=think), generate(think=think)):
        assert answer.reached is not None
        assert (answer.reached.thinking, answer.reached.effort) == (thinking, effort)


def test_a_model_that_cannot_think_is_refused_in_ollamas_words_unless_it_is_told_not_to() -> None:
    plain = Parts(models={"org/plain": {**CHAT, "chat_template.jinja": b"{{ messages }}"}})
    for path, content in (("/api/chat", {"messages": MESSAGES}), ("/api/generate", {"prompt": "x"})):
        for think in (True, "low"):
            answer = ask(path, plain, model="plain", think=think, **content)
            assert (answer.status, answer.error) == (400, '"plain" does not support thinking')
        assert ask(path, plain, model="plain", think=False, stream=False, **content).status == 200
    plain.close()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("json", Grammar.json_object()),
        (SCHEMA, Grammar.json_schema(SCHEMA, "response_format.json_schema.schema")),
        ("", None),
        (None, None),
    ],
)
def test_format_is_json_or_a_schema(form: Any, expected: Grammar | None) -> None:
    for answer in (chat(format=form), generate(format=form), generate(format=form, raw=True)):
        assert answer.reached is not None
        grammar = answer.reached.settings.grammar
        assert (grammar and grammar.text) == (expected and expected.text)


def test_logprobs_are_reported_for_every_token() -> None:
    for answer, text in ((chat(logprobs=True, top_logprobs=1), "one two three"), (generate(logprobs=True), None)):
        tokens = answer.body["logprobs"]
        assert "".join(token["token"] for token in tokens) == "one two three"
        assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == "one two three"
        assert all(len(token.get("top_logprobs", [])) == (1 if text else 0) for token in tokens)


def conversation(answer: Any) -> Conversation:
    """Return the conversation that reached the engine."""
    prompt = answer.reached.prompt
    assert isinstance(prompt, Conversation)
    return prompt


def test_a_prompt_is_a_conversation_with_its_system_prompt() -> None:
    messages = conversation(generate(system="Be brief.", prompt="Hi")).messages
    assert [(message.role, message.content) for message in messages] == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "Hi"),
    ]


def test_a_raw_prompt_and_one_for_a_model_without_a_template_are_given_as_they_are() -> None:
    assert generate(raw=True, prompt="Hi").reached.prompt == "Hi"
    assert generate(model=BASE_MODEL, prompt="Hi").reached.prompt == "Hi"
    answer = ask("/api/generate", model=BASE_MODEL, prompt="Hi", system="Be brief.")
    assert (answer.status, answer.error) == (400, "system: 'org/base-model' has no chat template")


def test_an_empty_list_of_tools_means_none() -> None:
    assert conversation(chat(tools=[])).tools == ()
    assert [json.loads(tool)["function"]["name"] for tool in conversation(chat(tools=[TOOL])).tools] == ["add"]


def called(*results: dict[str, Any], ids: tuple[str | None, ...] = (None, None)) -> list[tuple[str | None, str]]:
    """Return the ids and contents of the results of two calls, of ``add`` and ``mul``, as they reach the engine."""
    calls = [
        {"function": {"name": name, "arguments": {"a": 1}}, **({"id": identity} if identity else {})}
        for name, identity in zip(("add", "mul"), ids, strict=True)
    ]
    history = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": calls}]
    prompt = conversation(chat(messages=[*history, *({"role": "tool", **each} for each in results)], tools=[TOOL]))
    made = {call.id: call.name for message in prompt.messages for call in message.tool_calls}
    assert all(call.arguments == '{"a": 1}' for message in prompt.messages for call in message.tool_calls)
    return [(made.get(m.tool_call_id or ""), m.content) for m in prompt.messages if m.role is Role.TOOL]


def test_results_belong_to_calls_by_id_by_name_or_in_order() -> None:
    two = [("mul", "2"), ("add", "1")]
    assert called({"content": "2", "tool_name": "mul"}, {"content": "1", "tool_name": "add"}) == two
    by_id = ({"content": "2", "tool_call_id": "y"}, {"content": "1", "tool_call_id": "x"})
    assert called(*by_id, ids=("x", "y")) == two
    assert called({"content": "1"}, {"content": "2"}) == [("add", "1"), ("mul", "2")]
    assert called({"content": "2", "tool_name": "mul"}, {"content": "1"}) == two
    assert called({"content": "?", "tool_name": "other"}) == [(None, "?")]
    by_id_and_name = ({"content": "1", "tool_name": "add"}, {"content": "2", "tool_call_id": "call_1"})
    assert called(*by_id_and_name, ids=(None, "call_1")) == [("add", "1"), ("mul", "2")]
    assert called({"content": "?", "tool_name": "other"}, ids=("call_1", "call_2")) == [(None, "?")]


@pytest.mark.parametrize("arguments", ['{"a": 1}', '{"a": ', "", "no json"])
def test_arguments_may_be_text_even_broken_text(arguments: str) -> None:
    calls = [{"function": {"name": "add", "arguments": arguments}}]
    history = [*MESSAGES, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "1"}]
    [call] = conversation(chat(messages=history)).messages[1].tool_calls
    assert call.arguments == arguments


def test_thinking_goes_back_to_the_template() -> None:
    history = [*MESSAGES, {"role": "assistant", "content": "4", "thinking": "2+2"}, *MESSAGES]
    assert conversation(chat(messages=history)).messages[1].reasoning == "2+2"


NAMED = {"model": CHAT_MODEL}


def called_with(arguments: Any, role: str = "assistant") -> dict[str, Any]:
    """Return a message with a call."""
    return {"role": role, "content": "", "tool_calls": [{"function": {"name": "add", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/api/chat", {"messages": 1}, "messages: must be an array, not a number"),
        ("/api/chat", {"messages": [{"role": "x", "content": "a"}]}, "messages[0].role: must be one of"),
        ("/api/chat", {"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]: must be an object"),
        ("/api/chat", {"messages": MESSAGES, "options": {"temperature": "hot"}}, "options.temperature: must be a num"),
        ("/api/chat", {"messages": MESSAGES, "options": {"temperature": 9}}, "options.temperature: must be at most 5"),
        ("/api/chat", {"messages": MESSAGES, "options": []}, "options: must be an object, not an array"),
        ("/api/chat", {"messages": MESSAGES, "options": {"typical_p": 0.5}}, "options.typical_p: is not supported"),
        ("/api/chat", {"messages": MESSAGES, "think": "much"}, "think: must be true, false or one of low"),
        ("/api/chat", {"messages": MESSAGES, "think": 1}, "think: must be true, false or one of low"),
        ("/api/chat", {"messages": MESSAGES, "format": "xml"}, 'format: must be "json" or a JSON Schema'),
        ("/api/chat", {"messages": MESSAGES, "format": 3}, 'format: must be "json" or a JSON Schema'),
        ("/api/generate", {"prompt": "a", "format": [SCHEMA]}, 'format: must be "json" or a JSON Schema'),
        ("/api/chat", {"messages": [*MESSAGES, called_with(3)]}, "tool_calls[0].function.arguments: must be an object"),
        ("/api/chat", {"messages": [called_with({}, "user")]}, "messages[0].tool_calls: is for the role assistant"),
        ("/api/chat", {"messages": MESSAGES, "keep_alive": "soon"}, "keep_alive: must be a number of seconds"),
        ("/api/chat", {"messages": MESSAGES, "keep_alive": True}, "keep_alive: must be a number of seconds"),
        ("/api/chat", {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs: needs logprobs to be true"),
        ("/api/chat", {"messages": MESSAGES, "name": "other"}, "name: contradicts model"),
        ("/api/chat", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function: is required"),
        ("/api/chat", {"messages": [{"role": "user", "images": ["??"]}]}, "messages[0].images[0]"),
        ("/api/chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, "messages[0].images[0]"),
        ("/api/chat", {"messages": [{"role": "system", "images": ["aGk="]}]}, "messages[0].images: are for the role"),
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template: is not supported"),
        ("/api/generate", {"prompt": "a", "context": [1]}, "context: is not supported"),
        ("/api/generate", {"prompt": "a", "width": 64}, "width: is not supported: no images are generated"),
        ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "raw: does not support template, system, or"),
        ("/api/generate", {"prompt": "a", "suffix": "b", "system": "c"}, "suffix: is not supported together with syst"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, f'"{CHAT_MODEL}" does not support insert'),
        ("/api/generate", {"prompt": "a", "images": ["aGk="]}, "images[0]"),
        ("/api/generate", {"prompt": "a", "images": ["aGk="], "raw": True}, "images: is for prompts that"),
        ("/api/generate", {"prompt": "a", "model": SPEECH_MODEL}, "'org/whisper-large' does not generate text"),
        ("/api/generate", {"prompt": "a", "model": EMBEDDING_MODEL}, "Ask it for vectors: /api/embed."),
        ("/api/chat", {"messages": MESSAGES, "model": BASE_MODEL}, "has no chat template. Send the text to /api/gen"),
        ("/api/chat", {"messages": MESSAGES, "model": None}, "model is required"),
        ("/api/embed", {"model": EMBEDDING_MODEL, "input": 1}, "input: must be a string or an array of strings"),
        ("/api/embed", {"model": EMBEDDING_MODEL, "input": "a", "dimensions": 0}, "dimensions: must be at least 1"),
        ("/api/embed", {"input": "a"}, "'org/chat-model' is not an embedding model"),
        ("/api/show", {"model": None}, "model is required"),
    ],
)
def test_what_is_refused_is_named_in_one_text(path: str, body: dict[str, Any], text: str) -> None:
    answer = ask(path, **{**NAMED, **body})
    assert answer.status == 400
    assert text in answer.error


def test_the_vocabulary_of_efforts_and_options_is_the_documented_one() -> None:
    assert set(fields.EFFORTS) == {"low", "medium", "high", "max"}
    assert parts().settings.allow_model_changes is False
