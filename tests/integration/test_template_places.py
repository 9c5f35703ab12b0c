"""Chat templates wherever libraries put them: what ``show`` claims is what ``run`` does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_models, tiny_vision

Command = Callable[..., dict[str, Any]]
TEXT = tiny_models.TEMPLATE
TOOLS = "{%- if tools -%}{{ tools }}<tool_call>{%- endif -%}" + TEXT


def write(directory: Path, path: str, content: object) -> None:
    """Write a text, or JSON."""
    (directory / path).parent.mkdir(exist_ok=True)
    (directory / path).write_text(content if isinstance(content, str) else json.dumps(content))


PLACES: dict[str, dict[str, Any]] = {
    "file": {"chat_template.jinja": TEXT},
    "document": {"chat_template.json": {"chat_template": TEXT}},
    "document with a list": {"chat_template.json": {"chat_template": [{"name": "default", "template": TEXT}]}},
    "document with names": {"chat_template.json": {"chat_template": {"default": TEXT, "tool_use": TOOLS}}},
    "processor": {"processor_config.json": {"chat_template": TEXT}},
    "folder": {"additional_chat_templates/default.jinja": TEXT},
    "folder and file": {"chat_template.jinja": TEXT, "additional_chat_templates/tool_use.jinja": TOOLS},
    "folder with another name": {"additional_chat_templates/chatml.jinja": TEXT},
    "list": {"tokenizer_config.json": [{"name": "default", "template": TEXT}, {"name": "tool_use", "template": TOOLS}]},
    "list without a default": {"tokenizer_config.json": [{"name": "chatml", "template": TEXT}]},
    "blank in the config": {"tokenizer_config.json": "", "chat_template.json": {"chat_template": TEXT}},
}
NOT_PLACES: dict[str, dict[str, Any]] = {
    "nowhere": {},
    "blank": {"chat_template.jinja": " \n"},
    "empty document": {"chat_template.json": {}},
    "jinja of something else": {"prompt.jinja": TEXT, "sub/chat_template.jinja": TEXT},
    "litter": {"._chat_template.jinja": "\0\5\x16", "additional_chat_templates/._default.jinja": "\0\5\x16"},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a model without a template."""
    directory = tmp_path / "model"
    tiny_models.build(directory)
    put(directory, {"tokenizer_config.json": None})
    return directory


def put(directory: Path, files: dict[str, Any]) -> None:
    """Put templates into files; that of the tokenizer's config among its other settings."""
    for path, content in files.items():
        if path != "tokenizer_config.json":
            write(directory, path, content)
            continue
        settings = json.loads((directory / path).read_text())
        settings.pop("chat_template", None)
        write(directory, path, settings if content is None else {**settings, "chat_template": content})


TOKENS_WITHOUT_TEMPLATE = 2
"""Of the prompt below; the tests of places where no template is used show that it holds."""


def prompt_tokens(command: Command) -> int:
    """Return how many tokens the prompt of a run has."""
    usage = command("run", "./model", "hi", "--max-tokens", "2")["data"]["usage"]
    return int(usage["prompt_tokens"])


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_template_is_used_where_it_is_claimed(model: Path, command: Command, place: str) -> None:
    put(model, PLACES[place])
    shown = command("show", "./model")["data"]
    assert (shown["metadata"]["chat_template"], shown["model"]["model_type"]) == (True, "chat")
    assert prompt_tokens(command) > TOKENS_WITHOUT_TEMPLATE
    assert shown["metadata"]["supports_tools"] == ("tool_use" in str(PLACES[place]))


@pytest.mark.parametrize("place", sorted(NOT_PLACES))
def test_no_template_is_claimed_where_none_is_used(model: Path, command: Command, place: str) -> None:
    put(model, NOT_PLACES[place])
    shown = command("show", "./model")["data"]
    assert (shown["metadata"]["chat_template"], shown["model"]["model_type"]) == (False, "base")
    assert prompt_tokens(command) == TOKENS_WITHOUT_TEMPLATE


def test_only_the_templates_that_are_used_say_what_a_model_can_do(model: Path, command: Command) -> None:
    put(model, {"tokenizer_config.json": TOOLS, "chat_template.jinja": TEXT})
    assert command("show", "./model")["data"]["metadata"]["supports_tools"] is False


def test_litter_beside_a_template_is_not_read(model: Path, command: Command) -> None:
    put(model, PLACES["folder and file"])
    (model / "additional_chat_templates" / "._tool_use.jinja").write_bytes(b"\0\5\x16\xff\xfe")
    assert prompt_tokens(command) > TOKENS_WITHOUT_TEMPLATE


@pytest.mark.parametrize("litter", [False, True])
def test_a_prompt_is_shown_as_a_model_that_looks_at_images_is_given_it(
    tmp_path: Path, command: Command, litter: bool
) -> None:
    directory = tmp_path / "model"
    tiny_vision.build(directory)
    template = json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
    put(directory, {"tokenizer_config.json": None, "additional_chat_templates/chatml.jinja": template})
    if litter:
        (directory / "additional_chat_templates" / "._default.jinja").write_bytes(b"\0\5\x16\xff\xfe")
    shown = command("run", "./model", "hi", "--show-prompt")["data"]
    assert shown["text"] != "hi"
    assert shown["token_count"] == prompt_tokens(command)


@pytest.mark.parametrize(
    ("names", "plain", "with_tools"),
    [
        ("default", "default", "default"),
        ("default tool_use", "default", "tool_use"),
        ("default tool_use rag", "default", "tool_use"),
        ("tool_use", "tool_use", "tool_use"),
        ("rag default", "default", "default"),
    ],
)
def test_of_several_templates_that_for_tools_is_used_with_tools_only(
    model: Path, command: Command, names: str, plain: str, with_tools: str
) -> None:
    templates = [{"name": name, "template": f"<{name}>{{{{ tools }}}}{TEXT}"} for name in names.split()]
    put(model, {"tokenizer_config.json": templates})
    tool = {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}}
    (model.parent / "tools.json").write_text(json.dumps([tool]))
    for flags, expected in (((), plain), (("--tools", "tools.json"), with_tools)):
        shown = command("run", "./model", "hi", "--show-prompt", *flags)["data"]["text"]
        assert shown.startswith(f"<{expected}>")
