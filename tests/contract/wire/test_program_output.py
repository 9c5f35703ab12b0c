"""What the program really prints with ``--json``, held against the contracts: success and failure of every command."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving.fake_ollama import FakeOllama

from mlxk.domain.models.reference import BUILT_IN_NAMES
from mlxk.entrypoints.cli.program import COMMANDS

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Faults = Callable[[str, Any], list[str]]
Schemas = dict[str, dict[str, Any]]

SUCCESSES = [
    ["list"],
    ["list", "--all", "--health", "--verbose"],
    ["list", "acme/"],
    ["list", "matches nothing"],
    ["list", "./"],
    ["show", "demo"],
    ["show", "demo", "--files"],
    ["show", "demo", "--config"],
    ["show", "acme/Truncated"],
    ["show", "acme/NoConfig"],
    ["show", "acme/NoConfig", "--config"],
    ["show", "acme/NoSnapshots"],
    ["show", "acme/Delta-GGUF"],
    ["show", "mlx-community/Chat-4bit"],
    ["show", "mlx-community/Nonsense"],
    ["show", "mlx-community/Nonsense", "--config"],
    ["show", "managed"],
    ["show", "unmanaged", "--files"],
    ["health"],
    ["health", "demo"],
    ["health", "managed"],
    ["health", "acme/Truncated"],
    ["schema"],
    ["schema", "list"],
    ["completion", "bash"],
    ["chats"],
    ["chats", "rm", "--all", "--yes"],
    ["launch"],
    ["launch", "zed", "--print"],
    ["launch", "claude", "--print", "--model", "demo"],
    ["alias"],
    ["alias", "fast", "demo"],
    ["profile", "poet", "--model", "demo", "--temperature", "0.5"],
    ["config"],
    ["config", "path"],
    ["ps"],
    ["monitor", "--seconds", "0.1"],
    ["top", "--readings", "1"],
    ["stop", "--all"],
    ["service", "status"],
    ["service", "install", "--print"],
    ["service", "uninstall"],
    ["config", "--for", "run demo --temperature 0.5"],
    ["--version"],
]

RUNS = [
    ["run", "demo", "hi", "--temperature", "0"],
    ["run", "demo", "hi", "--max-tokens", "1"],
    ["run", "demo", "hi", "--no-chat-template", "--max-tokens", "2"],
    ["run", "demo", "hi", "--show-prompt"],
    ["bench", "demo", "--prompt-tokens", "4", "--generate", "2", "--repeats", "1"],
    ["bench", "demo-vision", "-p", "0", "-n", "2", "-r", "1", "--image-size", "32"],
    ["show", "demo", "--format-report"],
]

FAILURES = [
    (["show", "nosuch"], "model_not_found", 1),
    (["show", "Twin"], "ambiguous_match", 1),
    (["show", "acme/Plain@ffff"], "hash_not_found", 1),
    (["show", ""], "validation_error", 1),
    (["show"], "usage_error", 2),
    (["stop"], "usage_error", 2),
    (["monitor", "pytest"], "usage_error", 2),
    (["top", "--readings", "0"], "usage_error", 2),
    (["monitor", "-o", "no/such/file", "--seconds", "1"], "storage_error", 1),
    (["stop", "demo", "--all"], "usage_error", 2),
    (["stop", "nosuch"], "model_not_found", 1),
    (["logs"], "storage_error", 1),
    (["logs", "--follow"], "usage_error", 2),
    (["service", "status", "--start"], "usage_error", 2),
    (["health", "nosuch"], "model_not_found", 1),
    (["health", "--fast"], "usage_error", 2),
    (["list", "--fast"], "usage_error", 2),
    (["run", "nosuch", "hi"], "model_not_found", 1),
    (["run", "acme/Truncated", "hi"], "model_unhealthy", 1),
    (["run", "acme/Delta-GGUF", "hi"], "incompatible_model", 1),
    (["bench", "nosuch"], "model_not_found", 1),
    (["run", "demo", "hi", "--file", "nosuch.md"], "storage_error", 1),
    (["run", "demo", "hi", "--temperature", "99"], "validation_error", 1),
    (["run", "demo", "hi", "--max-tokens", "many"], "usage_error", 2),
    (["run", "demo"], "usage_error", 2),
    (["run", "demo", "hi", "--prompt", "there"], "usage_error", 2),
    (["run", "nosuch", "hi", "--show-prompt"], "model_not_found", 1),
    (["run", "demo", "word " * 8000, "--show-prompt"], "context_length_exceeded", 1),
    (["run", "demo", "hi", "--adapter", ""], "validation_error", 1),
    (["show", "https://huggingface.co/org/x"], "model_not_found", 1),
    (["run", "demo", "word " * 5000], "context_length_exceeded", 1),
    (["schema", "nosuch"], "validation_error", 1),
    (["completion", "tcsh"], "usage_error", 2),
    (["launch", "nosuch"], "usage_error", 2),
    (["launch", "codex", "--print", "--model", "nosuch"], "model_not_found", 1),
    (["alias", "demo", "demo-vision"], "validation_error", 1),
    (["alias", "fast"], "usage_error", 2),
    (["profile", "poet", "rm"], "usage_error", 2),
    (["profile", "rm", "nosuch"], "validation_error", 1),
    (["config", "shwo"], "usage_error", 2),
    (["config", "edit", "--for", "run demo"], "usage_error", 2),
    (["config", "--for", "frobnicate"], "usage_error", 2),
    (["frobnicate"], "usage_error", 2),
    ([], "usage_error", 2),
]


def name_of(arguments: list[str]) -> str:
    """Return the schema that a command line's output follows."""
    name = arguments[0] if arguments else ""
    return "version" if name == "--version" else name if name in COMMANDS else "envelope"


@pytest.mark.parametrize("arguments", SUCCESSES, ids=" ".join)
def test_a_success_validates(
    arguments: list[str], mlxk_here: Program, populated_disk: dict[str, str], faults: Faults, schemas: Schemas
) -> None:
    done = mlxk_here(*arguments, "--json", **populated_disk)
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr, document["status"]) == (0, "", "success"), document
    assert faults(name_of(arguments), document) == []
    assert misordered(document, schemas[name_of(arguments)], schemas, name_of(arguments)) == []


@pytest.mark.mlx
@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_an_answer_validates(arguments: list[str], mlxk_here: Program, faults: Faults, schemas: Schemas) -> None:
    done = mlxk_here(*arguments, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr, document["status"]) == (0, "", "success"), document
    assert faults(name_of(arguments), document) == []
    assert misordered(document, schemas[name_of(arguments)], schemas, name_of(arguments)) == []


def test_what_reports_say_validates(mlxk_here: Program, faults: Faults, schemas: Schemas, tmp_path: Path) -> None:
    record = {"schema_version": "0.2.2", "timestamp": "2026-01-01T00:00:00Z", "mlx_knife_version": "2.0.8", "test": "a"}
    lines = [json.dumps({**record, "outcome": outcome, "duration": 1.5}) for outcome in ("passed", "failed", "skipped")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text(lines[0])
    for arguments in (["a.jsonl"], ["a.jsonl", "--compare", "b.jsonl"]):
        document = json.loads(mlxk_here("bench", "report", *arguments, "--json").stdout)
        assert faults("bench", document) == []
        assert misordered(document, schemas["bench"], schemas, "bench") == []


def test_what_is_said_of_servers_validates(mlxk_here: Program, faults: Faults, schemas: Schemas) -> None:
    with FakeOllama({"tiny:latest": 10**8}) as server:
        asked = ["bench", "--url", server.url, "tiny", "-n", "4", "-r", "1", "--json"]
        for arguments in ([], ["--against", f"{server.url}#tiny"]):
            document = json.loads(mlxk_here(*asked, *arguments).stdout)
            assert faults("bench", document) == []
            assert misordered(document, schemas["bench"], schemas, "bench") == []


@pytest.mark.mlx
def test_an_answer_of_calls_validates_and_waits_for_results(
    mlxk_here: Program, faults: Faults, schemas: Schemas, tmp_path: Path
) -> None:
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": tool}]))
    document = json.loads(
        mlxk_here("run", "demo", "What is the weather in Paris?", "--tools", "tools.json", "--json").stdout
    )
    assert faults("run", document) == []
    assert misordered(document, schemas["run"], schemas, "run") == []
    assert document["data"]["finish_reason"] == "tool_calls"
    assert [call["name"] for call in document["data"]["tool_calls"]] == ["get_weather"]


@pytest.mark.mlx
def test_an_answer_with_notes_validates(mlxk: Program, faults: Faults, schemas: Schemas) -> None:
    document = json.loads(mlxk("run", "demo", "hi", "--max-kv-size", "64", "--json").stdout)
    assert faults("run", document) == []
    assert misordered(document, schemas["run"], schemas, "run") == []
    assert any("max_kv_size" in note for note in document["data"]["notes"])


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    FAILURES,
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_failure_validates(
    arguments: list[str], code: str, status: int, mlxk_here: Program, populated_disk: dict[str, str], faults: Faults
) -> None:
    done = mlxk_here(*arguments, "--json", **populated_disk)
    document = json.loads(done.stdout)
    assert (done.returncode, document["error"]["type"], done.stderr) == (status, code, ""), document
    assert faults(name_of(arguments), document) == []


@pytest.mark.parametrize(
    "command", [["list"], ["show", "demo"], ["health"], ["run", "demo", "hi"], ["--version"]], ids=" ".join
)
def test_a_wrong_environment_variable_is_a_failure_like_any_other(
    command: list[str], mlxk_here: Program, faults: Faults
) -> None:
    done = mlxk_here(*command, "--json", MLXK2_LOG_LEVEL="loud")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert (document["error"]["type"], "MLXK2_LOG_LEVEL" in document["error"]["message"]) == ("validation_error", True)
    assert faults(name_of(command), document) == []


@pytest.mark.parametrize("arguments", [["list"], ["show", "demo"], ["show", "nosuch"], ["frobnicate"]], ids=" ".join)
def test_json_may_stand_before_the_command(arguments: list[str], mlxk: Program) -> None:
    assert mlxk("--json", *arguments).stdout == mlxk(*arguments, "--json").stdout


def test_every_model_of_the_disk_is_listed_and_described_alike(
    mlxk_here: Program, populated_disk: dict[str, str]
) -> None:
    listed = json.loads(mlxk_here("list", "--json", **populated_disk).stdout)["data"]["models"]
    assert len(listed) == 11 + len(BUILT_IN_NAMES)
    assert [model["name"] for model in listed] == sorted(model["name"] for model in listed)
    for model in listed:
        shown = json.loads(mlxk_here("show", model["name"], "--json", **populated_disk).stdout)["data"]["model"]
        shown.pop("quantization", None)
        model.pop("display_name", None)
        assert shown == model


def misordered(value: Any, schema: dict[str, Any], schemas: Schemas, home: str) -> list[str]:
    """Return the objects of a document whose fields do not come in the order of the schema.

    Args:
        value: A document or a part of one.
        schema: Its schema.
        schemas: Every schema by its name, for references.
        home: The name of the schema that ``schema`` is a part of.
    """
    parts = alternatives(schema, schemas, home)
    if isinstance(value, list):
        rules = [(part["items"], origin) for part, origin in parts if "items" in part]
        return [fault for item in value for rule, origin in rules for fault in misordered(item, rule, schemas, origin)]
    if not isinstance(value, dict):
        return []
    order = list(dict.fromkeys(key for part, _ in parts for key in part.get("properties", {})))
    known = [key for key in value if key in order]
    found = [] if known == sorted(known, key=order.index) else [f"{home}: {known}"]
    for part, origin in parts:
        for key, rule in part.get("properties", {}).items():
            if key in value and isinstance(rule, dict):
                found += misordered(value[key], rule, schemas, origin)
    return found


def alternatives(schema: dict[str, Any], schemas: Schemas, home: str) -> list[tuple[dict[str, Any], str]]:
    """Return a schema and everything it refers to, each with the name of the file it stands in."""
    result: list[tuple[dict[str, Any], str]] = []
    if "$ref" in schema:
        file, _, pointer = schema["$ref"].partition("#")
        target_home = file.removesuffix(".schema.json") or home
        target: Any = schemas[target_home]
        for part in filter(None, pointer.split("/")):
            target = target[part]
        result += alternatives(target, schemas, target_home)
    for option in schema.get("anyOf", []):
        result += alternatives(option, schemas, home)
    return [*result, (schema, home)]
