"""What models of many families really write, where such data lies beside the repository.

The outputs and templates are their makers' and not part of the project: a folder ``shared/data/formats`` next to the
repository, or the one that MLXK_TEST_FORMATS names, holds them. Each record says what is right; null means that
anything is.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import tokenizer_utils
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlxk.domain.formats.family_formats import detect_syntaxes
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import detect_reasoning
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.request import AnswerDelta, ReasoningDelta, TextDelta, ToolCallDelta

FOLDER = Path(os.environ.get("MLXK_TEST_FORMATS") or Path(__file__).parents[3] / "shared" / "data" / "formats")
REQUIRED_SHARE = 0.95
SPECIAL = re.compile(r"<\|[^|<>\s'\"{}]{1,40}\|>|<[|｜][^<>\s'\"{}]{1,40}[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|</?think>")

Record = dict[str, Any]
Parsed = tuple[str, str, list[tuple[str, str]]]

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no real outputs in {FOLDER}; see MLXK_TEST_FORMATS")


def records(name: str) -> list[Record]:
    """Return the records of one file."""
    found: list[Record] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tokenizers by template, made when they are asked for."""
    return {"folder": tmp_path_factory.mktemp("tokenizers")}


def tokenizer_of(record: Record, tokenizers: dict[str, Any]) -> Any:
    """A tokenizer of bytes with the special tokens that the template names, and the template."""
    extra = tuple(record.get("special_tokens") or ())
    key = (record["template"], extra)
    if key not in tokenizers:
        template = (FOLDER / "templates" / record["template"]).read_text(encoding="utf-8")
        directory = tokenizers["folder"] / str(len(tokenizers))
        directory.mkdir()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = sorted({*SPECIAL.findall(template), *extra, "<s>", "</s>"})
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        tokenizer.save(str(directory / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        tokenizers[key] = tokenizer_utils.load(directory)
    return tokenizers[key]


def prompt_tail(record: Record, tokenizer: Any) -> str:
    """The end of the rendered prompt, which may open a block of reasoning."""
    messages = record.get("messages") or [{"role": "user", "content": "Hi"}]
    options = {key: value for key, value in record["request"].items() if key != "stop"}
    if "enable_thinking" in options:
        options["thinking"] = options["enable_thinking"]
    inner = tokenizer._tokenizer
    try:
        text = inner.apply_chat_template(
            messages, tools=record["tools"] or None, add_generation_prompt=True, tokenize=False, **options
        )
    except Exception:  # noqa: BLE001 - a template may refuse the tools of a record, which its output does not depend on
        return ""
    return str(text)[-256:]


def parsed(record: Record, tokenizers: dict[str, Any], size: int) -> Parsed:
    """Reasoning, content and calls of an output that comes in pieces; 0 is all at once."""
    tokenizer = tokenizer_of(record, tokenizers)
    template, vocabulary = tokenizer._tokenizer.chat_template, tokenizer.get_vocab()
    ids = itertools.count()
    tools = None
    if record["tools"]:
        offered = Tools([json.dumps(tool) for tool in record["tools"]])
        tools = ToolCallFormat(detect_syntaxes(template, vocabulary), offered, lambda: f"call_{next(ids)}")
    reasoning = detect_reasoning(template, vocabulary)
    parser = OutputParser(record["request"].get("stop") or (), reasoning, tools, prompt_tail(record, tokenizer))
    output, deltas = record["output"], list[AnswerDelta]()
    for piece in [output[i : i + size] for i in range(0, len(output), size)] if size else [output]:
        deltas += parser.feed(piece)
    deltas += parser.flush(record["complete"])
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)),
        [(delta.call.name, delta.call.arguments) for delta in deltas if isinstance(delta, ToolCallDelta)],
    )


def faults(record: Record, found: Parsed) -> Iterator[str]:
    """Say what is wrong."""
    reasoning, content, calls = found
    for name, value in (("reasoning", reasoning), ("content", content)):
        if record[name] is not None and value.strip() != record[name].strip():
            yield f"{name} is {value!r}"
    if record["calls"] is None:
        return
    if [name for name, _ in calls] != [call["name"] for call in record["calls"]]:
        yield f"calls are {calls}"
        return
    for (_, arguments), expected in zip(calls, record["calls"], strict=True):
        if expected["arguments"] is not None and json.loads(arguments) != expected["arguments"]:
            yield f"arguments are {arguments}"


@pytest.mark.parametrize("name", ["tool_outputs", "reasoning_outputs"])
def test_real_outputs_are_read(name: str, tokenizers: dict[str, Any]) -> None:
    wrong = {}
    for record in records(name):
        whole = parsed(record, tokenizers, 0)
        for size in (1, 3, 7):
            assert parsed(record, tokenizers, size) == whole, record["id"]
        found = list(faults(record, whole))
        if found:
            wrong[record["id"]] = found
    count = len(records(name))
    assert count - len(wrong) >= REQUIRED_SHARE * count, wrong
