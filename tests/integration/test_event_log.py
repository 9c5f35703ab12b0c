"""The log on structlog."""

import io
import json

import pytest

from mlxk.adapters.logging import StructlogEventLog


def log(level: str = "info", as_json: bool = True) -> tuple[StructlogEventLog, io.StringIO]:
    """Build a log that writes into memory."""
    stream = io.StringIO()
    return StructlogEventLog(level=level, as_json=as_json, home="/home/ada", stream=stream), stream


def test_an_event_is_one_json_object_a_line() -> None:
    events, stream = log()
    events.info("model loaded", model="org/m", seconds=1.5)
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert list(entry)[:3] == ["ts", "level", "msg"]
    assert (entry["level"], entry["msg"], entry["model"], entry["seconds"]) == ("INFO", "model loaded", "org/m", 1.5)


def test_less_severe_events_are_left_out() -> None:
    events, stream = log(level="warning")
    events.info("normal")
    events.warning("look")
    assert "normal" not in stream.getvalue()
    assert "look" in stream.getvalue()


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("field", "secret"),
    [
        ("note", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz123456"),
        ("note", "Authorization: Bearer abc.def"),
        ("note", "sk-proj-abcdefgh12345678"),
        ("prompt", "a private question"),
        ("authorization", "Basic dXNlcg=="),
        ("detail", {"token": "s3cret", "deep": [{"messages": ["private"]}]}),
        ("path", "/home/ada/models/secret-place"),
        ("note", [[[[[[[[[["private"]]]]]]]]]]),
    ],
)
def test_secrets_never_reach_the_log(field: str, secret: object, as_json: bool) -> None:
    events, stream = log(as_json=as_json)
    events.error("failed", **{field: secret})
    written = stream.getvalue()
    leaked = ["AbCdEfGhIjKl", "abc.def", "abcdefgh12345678", "private", "dXNlcg", "s3cret", "/home/ada"]
    assert not [word for word in leaked if word in written]


def test_the_home_directory_is_written_as_a_tilde() -> None:
    events, stream = log(as_json=False)
    events.warning("cannot read /home/ada/models/x")
    assert stream.getvalue() == "[WARN] cannot read ~/models/x\n"


def test_a_secret_in_the_event_itself_is_redacted() -> None:
    events, stream = log()
    events.warning("refused hf_AbCdEfGhIjKlMnOp")
    assert "AbCd" not in stream.getvalue()
