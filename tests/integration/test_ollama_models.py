"""Ollama's API with the real engine: tools, reasoning, images, schemas, windows, suffixes, and how long models stay."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models.scripted_model import write_model
from models.tiny_embedding import WINDOW, build_bert
from PIL import Image
from serving.ollama import joined, stream
from serving.running import RunningServer, eventually
from serving.settings_home import Machine
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx

RESULT, CUT, JSON_MARK = "@@RESULT@@", "@@CUT@@", "@@JSON@@"
ANSWER = "It is sunny in Köln, 21 degrees."
THOUGHT = "I look outside, and I think about it."
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}{% endif %}"
)
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
QUESTION = [{"role": "user", "content": "How is the weather in Köln?"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve scripted models and a tiny encoder by their paths, and the built-in models."""
    folder = tmp_path_factory.mktemp("ollama")
    special = ("<|im_start|>",)
    reply = f"<think>\n{THOUGHT}\n</think>\n\nLet me see.\n{CALLS}"
    replies = {RESULT: ANSWER, JSON_MARK: '{"city": "Köln"}', "/no_think": "Just sunny."}
    write_model(folder / "agent", TEMPLATE, reply, replies, special=special, added=("<think>", "</think>"))
    write_model(folder / "coder", TEMPLATE, "return a + b", {FIM[1]: "a, b"}, special=special, added=FIM[::2])
    write_model(folder / "base", "", "and so on", context=64)
    build_bert(folder / "encoder")
    program: Any = WholeProgram(folder, ServerSettings(allow_paths=True))
    program.folder = folder
    with RunningServer(program) as running:
        yield running


def named(served: RunningServer, name: str) -> str:
    """Return the name of a model in requests."""
    program: Any = served.parts
    return name if name.startswith("demo") else str(program.folder / name)


def ask(served: RunningServer, name: str, streams: bool, path: str = "/api/chat", **fields: Any) -> dict[str, Any]:
    """Send a request; return the answer, put together from its lines when it is streamed."""
    options = {"temperature": 0, "num_predict": 200, **fields.pop("options", {})}
    body = {"model": named(served, name), "options": options, "stream": streams, **fields}
    if streams:
        return joined(stream(served, path, body))
    status, _, answer = served.post(path, body)
    assert status == 200, answer
    whole: dict[str, Any] = answer
    return whole


def refused(served: RunningServer, name: str, path: str = "/api/chat", **fields: Any) -> tuple[int, str]:
    """Return status and text of an error."""
    status, _, answer = served.post(path, {"model": named(served, name), **fields})
    assert list(answer) == ["error"], answer
    return status, answer["error"]


@pytest.mark.parametrize("streams", [True, False])
def test_an_agents_loop_with_reasoning_text_and_two_calls(served: RunningServer, streams: bool) -> None:
    first = ask(served, "agent", streams, messages=QUESTION, tools=TOOLS)
    message = first["message"]
    assert (message["thinking"].strip(), message["content"].strip()) == (THOUGHT, "Let me see.")
    calls = [call["function"] for call in message["tool_calls"]]
    assert calls == [
        {"index": 0, "name": "get_weather", "arguments": {"city": "Köln"}},
        {"index": 1, "name": "now", "arguments": {}},
    ]
    assert (first["done_reason"], first["eval_count"] > 0, first["eval_duration"] > 0) == ("stop", True, True)
    results = [
        {"role": "tool", "tool_name": "get_weather", "content": f"{RESULT} sunny, 21 degrees"},
        {"role": "tool", "tool_name": "now", "content": "noon"},
    ]
    second = ask(served, "agent", streams, messages=[*QUESTION, message, *results], tools=TOOLS)
    assert second["message"] == {"role": "assistant", "content": ANSWER}


def test_streamed_and_whole_say_the_same(served: RunningServer) -> None:
    for fields in ({"tools": TOOLS}, {"think": False}, {"options": {"stop": ["see"]}}):
        both = [ask(served, "agent", streams, messages=QUESTION, **fields) for streams in (True, False)]
        assert len({json.dumps(without_ids(answer["message"])) for answer in both}) == 1
        counts = ("prompt_eval_count", "eval_count", "done_reason")
        assert [both[0][name] for name in counts] == [both[1][name] for name in counts]


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without the ids of its calls, which differ from one answer to the next."""
    calls = [{**call, "id": ""} for call in message.get("tool_calls", ())]
    return {**dict(sorted(message.items())), **({"tool_calls": calls} if calls else {})}


@pytest.mark.parametrize("streams", [True, False])
def test_the_prompt_is_counted_as_the_model_reads_it(served: RunningServer, streams: bool) -> None:
    body = {"model": named(served, "agent"), "messages": QUESTION}
    count = served.post("/tokenize", body)[2]["count"]
    assert ask(served, "agent", streams, messages=QUESTION)["prompt_eval_count"] == count


@pytest.mark.parametrize("streams", [True, False])
def test_thinking_is_switched_off_and_goes_apart_in_generate_too(served: RunningServer, streams: bool) -> None:
    path = "/api/generate"
    off = ask(served, "agent", streams, path, prompt="How is it?", think=False)
    assert (off["response"], "thinking" in off) == ("Just sunny.", False)
    thought = ask(served, "agent", streams, path, prompt="How is it?", think=True, options={"stop": ["<tool_call>"]})
    assert (thought["thinking"].strip(), thought["response"].strip()) == (THOUGHT, "Let me see.")


def test_a_model_that_cannot_reason_is_refused_in_ollamas_words(served: RunningServer) -> None:
    status, text = refused(served, "demo-vision", messages=QUESTION, think=True)
    assert (status, text) == (400, '"demo-vision" does not support thinking')


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("form", [CITY, {**CITY, "additionalProperties": False}])
def test_a_schema_is_obeyed(served: RunningServer, streams: bool, form: Any) -> None:
    messages = [{"role": "user", "content": f"{JSON_MARK} Köln?"}]
    answer = ask(served, "agent", streams, messages=messages, format=form, think=False)
    assert set(json.loads(answer["message"]["content"])) == {"city"}
    answer = ask(served, "demo", streams, "/api/generate", prompt="Name a city.", format=form)
    assert set(json.loads(answer["response"])) == {"city"}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_json_is_json_and_a_schema_that_is_none_is_refused(served: RunningServer, path: str) -> None:
    content: dict[str, Any] = {"messages": QUESTION} if path == "/api/chat" else {"prompt": "x"}
    for streams in (True, False):
        answer = ask(served, "demo", streams, path, **content, format="json", options={"num_predict": 300})
        text = answer["message"]["content"] if path == "/api/chat" else answer["response"]
        assert answer["done_reason"] == "length" or isinstance(json.loads(text), dict)
    raw = ({}, {"raw": True}) if path == "/api/generate" else ({},)
    for more in raw:
        status, text = refused(served, "demo", path, **content, **more, format={"type": "nothing"})
        assert (status, text.startswith("format")) == (400, True), text


def picture(color: str) -> str:
    """Return a drawing in base64, without more."""
    data = io.BytesIO()
    image = Image.new("RGB", (64, 64), "white")
    image.paste(color, (12, 12, 52, 52))
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize("streams", [True, False])
def test_images_are_bare_base64(served: RunningServer, streams: bool) -> None:
    for color in ("blue", "red"):
        asked = [{"role": "user", "content": "What color is it?", "images": [picture(color)]}]
        assert color in ask(served, "demo-vision", streams, messages=asked)["message"]["content"]
        url = f"data:image/png;base64,{picture(color)}"
        for images in ([picture(color)], [url]):
            generated = ask(served, "demo-vision", streams, "/api/generate", prompt="What color is it?", images=images)
            assert color in generated["response"]


def test_images_for_a_text_model_are_refused_by_their_field(served: RunningServer) -> None:
    asked = [{"role": "user", "content": "?", "images": [picture("red")]}]
    status, text = refused(served, "demo", messages=asked)
    refusal = "'demo' is a text model and takes no images. Choose a model with the capability vision."
    assert (status, text) == (400, f"messages[0].images[0]: {refusal}")
    status, text = refused(served, "demo", "/api/generate", prompt="?", images=[picture("red")])
    assert (status, text) == (400, f"images[0]: {refusal}")


def test_num_ctx_is_the_window_and_nothing_is_cut_in_silence(served: RunningServer) -> None:
    long = [{"role": "user", "content": "mlxk " * 100}]
    for more in ({}, {"truncate": False}, {"truncate": True}):
        status, text = refused(served, "demo", messages=long, options={"num_ctx": 64}, **more)
        assert status == 400
        assert text.startswith("the input length exceeds the context length: the prompt has ")
        assert "the context window holds 64" in text
    for path, content in (("/api/chat", {"messages": QUESTION}), ("/api/generate", {"prompt": "x", "raw": True})):
        options = {"num_ctx": 40, "num_predict": -1, "seed": 1, "temperature": 2.0}
        answer = ask(served, "demo", False, path, **content, options=options)
        assert answer["prompt_eval_count"] + answer["eval_count"] <= 40
    too_long = [{"role": "user", "content": "mlxk " * 3000}]
    assert "the context window holds 2048" in refused(served, "demo", messages=too_long)[1]


@pytest.mark.parametrize("streams", [True, False])
def test_the_oldest_turns_are_left_out_where_the_request_says_so_and_that_is_said(
    served: RunningServer, streams: bool
) -> None:
    turns = [{"role": "user", "content": "mlxk " * 20}, {"role": "assistant", "content": "Yes."}] * 10
    messages = [{"role": "system", "content": "Be brief."}, *turns, *QUESTION]
    asked = {"model": "demo", "messages": messages, "options": {"num_ctx": 256}, "stream": streams}
    for more in ({}, {"truncate": False}):
        assert served.post("/api/chat", {**asked, **more})[0] == 400
    status, headers, _ = served.post("/api/chat", {**asked, "truncate": True})
    assert (status, headers["x-mlxk-adaptations"]) == (200, "oldest-turns-dropped")
    answer = ask(served, "demo", streams, messages=messages, options={"num_ctx": 256}, truncate=True)
    assert 0 < answer["prompt_eval_count"] < 256
    last = [*turns, {"role": "user", "content": "mlxk " * 300}]
    status, text = refused(served, "demo", messages=last, truncate=True, options={"num_ctx": 256})
    assert (status, text.startswith("the input length exceeds the context length: ")) == (400, True)


def test_a_suffix_is_for_models_with_the_tokens_for_it(served: RunningServer) -> None:
    answer = ask(served, "coder", False, "/api/generate", prompt="def add(", suffix="): return a + b")
    assert answer["response"] == "a, b"
    text = f"{FIM[0]}def add({FIM[1]}): return a + b{FIM[2]}"
    count = served.post("/tokenize", {"model": named(served, "coder"), "prompt": text})[2]["count"]
    assert answer["prompt_eval_count"] == count
    status, text = refused(served, "demo", "/api/generate", prompt="a", suffix="b")
    assert (status, text) == (400, '"demo" does not support insert')


@pytest.mark.parametrize("streams", [True, False])
def test_a_model_without_a_template_continues_the_prompt(served: RunningServer, streams: bool) -> None:
    assert ask(served, "base", streams, "/api/generate", prompt="So")["response"] == "and so on"
    assert "has no chat template" in refused(served, "base", messages=QUESTION)[1]


@pytest.mark.parametrize("arguments", ['{"city": "Kö', {"city": "Köln"}, "no json"])
def test_broken_arguments_in_the_history_are_tolerated(served: RunningServer, arguments: Any) -> None:
    call = {"function": {"name": "get_weather", "arguments": arguments}}
    history = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = {"role": "tool", "content": f"{RESULT} sunny"}
    assert ask(served, "agent", False, messages=[*history, result], tools=TOOLS)["message"]["content"] == ANSWER


@pytest.mark.parametrize("streams", [True, False])
def test_log_probabilities_of_every_token(served: RunningServer, streams: bool) -> None:
    answer = ask(served, "demo", streams, messages=QUESTION, logprobs=True, top_logprobs=2, options={"num_predict": 4})
    text = b"".join(bytes(token["bytes"]) for token in answer["logprobs"]).decode()
    assert text == answer["message"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in answer["logprobs"])


def loaded(served: RunningServer) -> list[str]:
    """Return the names of the models in memory."""
    return [each["name"] for each in served.get("/api/ps")[2]["models"]]


def in_memory(served: RunningServer) -> list[str]:
    """Return the folders of the models in memory; ``/api/ps`` lists none that are named by path."""
    program: Any = served.parts
    return [each.directory for each in program.generator.state(30.0).models]


def test_a_model_stays_as_long_as_its_last_request_says(served: RunningServer) -> None:
    name = "demo:latest"
    assert served.post("/api/generate", {"model": "demo", "keep_alive": -1})[2]["done_reason"] == "load"
    [running] = [each for each in served.get("/api/ps")[2]["models"] if each["name"] == name]
    assert (running["expires_at"] > "2200", running["size_vram"] == running["size"] > 0) == (True, True)
    assert ask(served, "demo", False, messages=QUESTION, keep_alive=0)["done"]
    assert eventually(lambda: name not in loaded(served))
    ask(served, "demo", True, "/api/generate", prompt="x", keep_alive="10m")
    assert name in loaded(served)
    assert served.post("/api/chat", {"model": "demo", "messages": [], "keep_alive": 0})[2]["done_reason"] == "unload"
    assert name not in loaded(served)


def test_a_model_that_answers_is_unloaded_when_it_has_answered(served: RunningServer) -> None:
    program: Any = served.parts
    endless = {"num_predict": 600, "temperature": 0, "num_ctx": 2048}
    body = {"model": "demo", "prompt": "mlxk", "raw": True, "format": {"type": "string", "minLength": 4000}}
    connection = served.raw("/api/generate", {**body, "options": endless})
    assert eventually(lambda: program.running() == 1)
    assert served.post("/api/generate", {"model": "demo", "keep_alive": 0})[2]["done_reason"] == "unload"
    connection.close()
    assert eventually(lambda: "demo:latest" not in loaded(served))


def test_vectors_are_those_of_the_other_api_and_too_long_texts_are_cut_and_reported(served: RunningServer) -> None:
    model = named(served, "encoder")
    status, headers, body = served.post("/api/embed", {"model": model, "input": ["a man", "bread"]})
    other = served.post("/v1/embeddings", {"model": model, "input": ["a man", "bread"]})[2]
    assert (status, body["embeddings"]) == (200, [each["embedding"] for each in other["data"]])
    assert body["prompt_eval_count"] == other["usage"]["prompt_tokens"]
    assert "x-mlxk-adaptations" not in headers
    long = "bread " * (2 * WINDOW)
    for more in ({}, {"truncate": True}):
        status, headers, body = served.post("/api/embed", {"model": model, "input": long, **more})
        assert (status, headers["x-mlxk-adaptations"], len(body["embeddings"])) == (200, "inputs-truncated", 1)
    status, text = refused(served, "encoder", "/api/embed", input=["a", long], truncate=False)
    assert (status, text.startswith("the input length exceeds the context length: input[1] has ")) == (400, True)
    for path, used, unused in (
        ("/api/embed", {"input": "bread"}, {"input": ["", ""]}),
        ("/api/embed", {"input": "bread"}, {}),
        ("/api/embeddings", {"prompt": "bread"}, {"prompt": ""}),
    ):
        for fields in (used, unused):
            assert served.post(path, {"model": model, **used})[0] == 200
            assert model in in_memory(served)
            assert served.post(path, {"model": model, **fields, "keep_alive": 0})[0] == 200
            assert model not in in_memory(served), (path, fields)


def test_a_path_is_no_name_for_a_client_unless_the_operator_says_so(tmp_path: Path) -> None:
    program: Any = WholeProgram(tmp_path)
    with RunningServer(program) as it:
        status, _, body = it.post("/api/show", {"model": "/etc/passwd:latest"})
    assert (status, "paths are not accepted" in body["error"]) == (400, True)


def test_a_copy_of_a_model_is_identified_by_its_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlxk, path = Machine(tmp_path / "home", capsys), str(tmp_path / "copy")
    assert (mlxk("clone", "demo", path).status, mlxk("alias", "kept", path).status) == (0, 0)
    shown = mlxk("show", path, "--json").data["model"]
    with mlxk.serve() as server:
        digests = {each["name"]: each["digest"] for each in server.get("/api/tags")[2]["models"]}
    assert f"sha256:{digests['kept:latest']}" == shown["content_hash"]
