"""A server that quantizes keys and values: every answer, in batches too, and its estimate of memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from models.tiny_models import build
from serving.settings_home import Machine
from serving.whole_program import PATH

pytestmark = pytest.mark.mlx
Command = Callable[..., dict[str, Any]]


def test_all_answers_have_quantized_caches_and_are_those_of_one_computed_alone(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(tmp_path / "model", head_dim=32).directory
    prompts = [f"The quick brown fox {number}" for number in range(4)]
    flags = ("--max-tokens", "24", "--temperature", "0", "--no-chat-template")
    alone = [command("run", model, each, *flags, "--kv-bits", "4")["data"]["response"] for each in prompts]
    plain = [command("run", model, each, *flags)["data"]["response"] for each in prompts]
    machine = Machine(tmp_path / "home", capsys)

    with (
        machine.serve("--kv-bits", "4", "--allow-model-paths") as served,
        ThreadPoolExecutor(len(prompts)) as clients,
    ):

        def answer(prompt: str) -> str:
            body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0}
            status, _, document = served.post(PATH.replace("chat/", ""), body)
            assert status == 200, document
            return str(document["choices"][0]["text"])

        answers = list(clients.map(answer, prompts))

    assert [each.strip() for each in answers] == [each.strip() for each in alone]
    assert alone != plain


def test_the_estimate_of_memory_counts_quantized_keys_and_values(command: Command) -> None:
    asked = ((), ("--kv-bits", "4"), ("--kv-bits", "4", "--kv-group-size", "128"))
    memory = [command("show", "demo", *flags)["data"]["memory"] for flags in asked]
    plain, quantized, in_large_groups = (each["cache_bytes_per_1k_tokens"] for each in memory)
    assert quantized == plain * 5 // 16
    assert in_large_groups == plain * 17 // 64


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--kv-bits", "5"), "--kv-bits must be one of 4, 8"),
        (("--kv-bits", "8", "--kv-group-size", "48"), "--kv-group-size must be one of 32, 64, 128"),
        (("--kv-group-size", "32"), "--kv-group-size needs --kv-bits"),
        (("--max-kv-size", "3"), "--max-kv-size must be"),
        (("--kv-bits", "8", "--max-kv-size", "64"), "--kv-bits and --max-kv-size exclude each other"),
        (
            ("--model", "demo", "--draft-model", "demo", "--max-kv-size", "64"),
            "--draft-model and --max-kv-size exclude each other",
        ),
    ],
)
def test_flags_out_of_range_are_refused(
    flags: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Machine(tmp_path, capsys)("serve", *flags)
    assert done.status != 0
    assert said in done.err


@pytest.mark.parametrize("words", [("show", "demo"), ("run", "demo", "hi")])
def test_a_size_of_groups_without_bits_is_refused(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Machine(tmp_path, capsys)(*words, "--kv-group-size", "64")
    assert (done.status, "--kv-group-size needs --kv-bits" in done.err) == (1, True), done
