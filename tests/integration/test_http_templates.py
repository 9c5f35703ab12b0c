"""Chat templates over HTTP: what was changed is in a header and the log, switches reach the template, nothing hangs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.running import RunningServer, eventually, read_all
from serving.whole_program import PATH, WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo"
SHOWN = "/apply-template"
Json = dict[str, Any]

_CHAT = (
    "{% for m in messages %}{{ '<' + m.role + '>' + (m.content or '') }}"
    "{{ '(' + m.reasoning_content + ')' if m.reasoning_content }}{% endfor %}"
)
TEMPLATES = {
    "strict": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + _CHAT,
    "levels": _CHAT + "{{ 'effort ' + reasoning_effort if reasoning_effort in ['low', 'high', 'max'] else 'usual' }}",
    "extremes": _CHAT + "{% if reasoning_effort in ['none', 'max'] %}effort {{ reasoning_effort }}{% endif %}",
    "switch": _CHAT + "{{ 'on' if enable_thinking is defined and enable_thinking else 'off' }}{{ colour }}",
    "refuses": "{% for m in messages %}{{ raise_exception('bad word') if m.content == 'bad' }}{% endfor %}" + _CHAT,
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Copies of the built-in model with other templates, by name."""
    found = {}
    for name, template in TEMPLATES.items():
        folder = shutil.copytree(DEMO, tmp_path_factory.mktemp(name) / name)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        found[name] = str(folder)
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = ServerSettings(allow_paths=True, enable_thinking=True, thinking_budget=7)
    program: Any = WholeProgram(tmp_path_factory.mktemp("home"), settings)
    with RunningServer(program) as running:
        yield running


def asked(served: RunningServer, model: str, *messages: Json, **fields: Any) -> tuple[int, dict[str, str], Any]:
    return served.post(PATH, {"model": model, "messages": messages, "max_tokens": 2, "temperature": 0, **fields})


def shown(served: RunningServer, model: str, *messages: Json, **fields: Any) -> str:
    """Return the prompt of a request."""
    status, _, answer = served.post(SHOWN, {"model": model, "messages": messages, **fields})
    assert status == 200, answer
    text: str = answer["prompt"]
    return text


def patiently(served: RunningServer, body: Json) -> bytes:
    """Return the response to a request that may wait for seconds of processor time, on a machine with other work."""
    data = json.dumps(body).encode()
    connection = served.connect(timeout=300.0)
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return read_all(connection)


def adaptations(headers: dict[str, str]) -> list[str]:
    found = {name.lower(): value for name, value in headers.items()}.get("x-mlxk-adaptations", "")
    return found.split(", ") if found else []


def test_what_was_changed_is_said_in_a_header_of_whole_and_streamed_answers(
    served: RunningServer, models: dict[str, str]
) -> None:
    messages = ({"role": "developer", "content": "s"}, user("u"))
    status, headers, _ = asked(served, models["strict"], *messages)
    assert (status, adaptations(headers)) == (200, ["system-in-user-message"])
    body = {"model": models["strict"], "messages": messages, "max_tokens": 2, "stream": True}
    assert (
        b"x-mlxk-adaptations: system-in-user-message"
        in read_all(served.raw(PATH, body, extra="Connection: close\r\n")).lower()
    )
    assert shown(served, models["strict"], *messages) == "<user>s\n\nu"


def test_an_ordinary_request_says_nothing(served: RunningServer) -> None:
    status, headers, _ = asked(served, "demo", user("Hello!"))
    assert (status, adaptations(headers)) == (200, [])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_that_is_sent_back_reaches_the_template(
    served: RunningServer, models: dict[str, str], field: str
) -> None:
    thought = {"role": "assistant", "content": "a", field: "why"}
    assert "<assistant>a(why)<user>v" in shown(served, models["switch"], user("u"), thought, user("v"))
    _, headers, _ = asked(served, models["switch"], user("u"), thought, user("v"))
    assert not any(name.lower() == "x-mlxk-ignored-fields" for name in headers)


def test_a_turn_of_reasoning_alone_needs_no_content(served: RunningServer, models: dict[str, str]) -> None:
    thought = {"role": "assistant", "content": None, "reasoning_content": "why"}
    assert asked(served, models["switch"], user("u"), thought, user("v"))[0] == 200


@pytest.mark.parametrize(
    ("fields", "shows"),
    [
        ({}, "on"),
        ({"enable_thinking": False}, "off"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "off"),
        ({"chat_template_kwargs": {"colour": "blue"}}, "onblue"),
        ({"chat_template_kwargs": {"colour": None}}, "on"),
        ({"reasoning_effort": "none"}, "off"),
        ({"reasoning_effort": "minimal"}, "off"),
        ({"reasoning_effort": "low"}, "on"),
        ({"reasoning_effort": "xhigh"}, "on"),
        ({"reasoning": {"effort": "none"}}, "off"),
        ({"reasoning": {"enabled": False}}, "off"),
        ({"thinking": {"type": "disabled"}}, "off"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "on"),
    ],
)
def test_every_spelling_of_the_switch_reaches_the_template(
    served: RunningServer, models: dict[str, str], fields: Json, shows: str
) -> None:
    assert shown(served, models["switch"], user("u"), **fields) == f"<user>u{shows}"


@pytest.mark.parametrize(
    ("effort", "shows"),
    [
        ("none", "effort low"),
        ("minimal", "effort low"),
        ("low", "effort low"),
        ("medium", "usual"),
        ("high", "effort high"),
        ("xhigh", "effort high"),
    ],
)
def test_an_effort_is_the_nearest_level_that_the_template_knows(
    served: RunningServer, models: dict[str, str], effort: str, shows: str
) -> None:
    assert shown(served, models["levels"], user("u"), reasoning_effort=effort) == f"<user>u{shows}"


@pytest.mark.parametrize(
    ("effort", "shows"), [("none", "effort none"), ("minimal", "effort none"), ("high", ""), ("xhigh", "effort max")]
)
def test_levels_that_a_template_lists_in_a_condition_are_known(
    served: RunningServer, models: dict[str, str], effort: str, shows: str
) -> None:
    assert shown(served, models["extremes"], user("u"), reasoning_effort=effort) == f"<user>u{shows}"


def test_options_without_effect_are_said(served: RunningServer, models: dict[str, str]) -> None:
    options = {"reasoning_effort": "high", "chat_template_kwargs": {"colour": 1}}
    status, headers, _ = asked(served, models["strict"], user("u"), **options)
    assert status == 200
    assert adaptations(headers) == ["reasoning-effort-without-effect", "template-options-without-effect"]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"])
def test_options_do_not_override_the_conversation(served: RunningServer, name: str) -> None:
    status, _, answer = asked(served, "demo", user("u"), chat_template_kwargs={name: 1})
    assert (status, answer["error"]["param"]) == (400, f"chat_template_kwargs.{name}")


def test_switches_that_contradict_one_another_are_refused(served: RunningServer) -> None:
    fields = {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}
    status, _, answer = asked(served, "demo", user("u"), **fields)
    assert (status, answer["error"]["param"]) == (400, "chat_template_kwargs.enable_thinking")


def test_a_last_message_of_the_assistant_is_continued(served: RunningServer, models: dict[str, str]) -> None:
    messages = (user("u"), {"role": "assistant", "content": "Sure, the "})
    assert shown(served, models["strict"], *messages) == "<user>u<assistant>Sure, the "
    assert adaptations(asked(served, models["strict"], *messages)[1]) == ["answer-continued"]


def test_the_message_that_a_template_refuses_is_the_field_at_fault(
    served: RunningServer, models: dict[str, str]
) -> None:
    messages = (user("a"), {"role": "assistant", "content": "b"}, user("bad"))
    status, _, answer = asked(served, models["refuses"], *messages)
    assert (status, answer["error"]["param"]) == (400, "messages[2]")
    assert "bad word" in answer["error"]["message"]


def test_an_endless_template_is_refused_and_holds_up_nobody(served: RunningServer, models: dict[str, str]) -> None:
    program: Any = served.parts
    endless = {"model": models["loops"], "messages": [user("u")]}
    waiting = [served.raw(PATH, endless) for _ in range(8)]
    assert patiently(served, {"model": "demo", "messages": [user("Hello!")], "max_tokens": 2}).startswith(
        b"HTTP/1.1 200"
    )
    for connection in waiting:
        connection.close()
    assert eventually(lambda: program.running() == 0, 120.0)
    for _ in range(2):
        refused = patiently(served, endless)
        assert refused.startswith(b"HTTP/1.1 400")
        assert b"chat template does not end here" in refused


def test_a_budget_of_any_spelling_cuts_the_reasoning(served: RunningServer) -> None:
    def reasoning(**fields: Any) -> int:
        status, _, answer = asked(served, "demo", user("Hello!"), **{"max_tokens": 60, **fields})
        assert status == 200, answer
        return len(answer["choices"][0]["message"].get("reasoning_content") or "")

    shortest = reasoning(thinking_budget=1, enable_thinking=True)
    assert shortest < reasoning(thinking_budget=500, enable_thinking=True)
    for name in ("thinking_budget_tokens", "reasoning_budget_tokens"):
        assert reasoning(**{name: 1}) == shortest
    assert reasoning(reasoning={"max_tokens": 1}) == shortest
    assert reasoning(thinking={"type": "enabled", "budget_tokens": 1}) == shortest
    # The server's own default.
    assert reasoning() == reasoning(thinking_budget=7, enable_thinking=True)
