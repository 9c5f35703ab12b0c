"""Which switches of a server combine: refused ones stop the start by name, the others give the text of each alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from models.tiny_models import build, write_adapter
from serving.settings_home import Machine

pytestmark = pytest.mark.mlx
PROMPT = "The quick brown fox"


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--draft-model", "demo"], "--draft-model needs --model"),
        (["--model", "demo", "--draft-tokens", "2"], "--draft-tokens needs --draft-model"),
        (["--model", "demo", "--draft-model", "demo", "--thinking-budget", "9"], "exclude each other"),
        (["--model", "demo", "--draft-model", "demo", "--draft-tokens", "17"], "--draft-tokens must be at least 1"),
        (["--model", "demo", "--draft-model", "demo", "--draft-tokens", "0"], "--draft-tokens must be at least 1"),
        (["--model", "demo", "--draft-block-size", "3"], "--draft-block-size needs --draft-model"),
        (["--model", "demo", "--draft-kind", "mtp"], "--draft-kind needs --draft-model"),
        (["--kv-group-size", "32"], "--kv-group-size needs --kv-bits"),
        (["--prefix-cache-disk", "2"], "--prefix-cache-disk needs --prefix-cache-dir"),
        (["--quantize-activations"], "quantize_activations: only CUDA has products of quantized activations"),
        (["--alias", "a=demo", "--adapter", "a=/nowhere"], "'a' is an alias already"),
    ],
)
def test_flags_that_exclude_each_other_stop_the_start_by_name(mlxk: Machine, flags: list[str], fault: str) -> None:
    refused = mlxk("serve", *flags)
    assert (refused.status, fault in refused.err) == (1, True), refused.err
    assert mlxk.served == []


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"draft_model": "demo", "thinking_budget": 5}, "draft_model and thinking_budget exclude each other"),
        ({"draft_model": "demo", "max_kv_size": 64}, "draft_model and max_kv_size exclude each other"),
        ({"kv_bits": 8, "max_kv_size": 64}, "max_kv_size and kv_bits exclude each other"),
        ({"pin": True, "keep_alive": 3}, "pin and keep_alive exclude each other"),
        ({"draft_tokens": 4}, "draft_tokens needs draft_model"),
        ({"draft_kind": "mtp"}, "draft_kind needs draft_model"),
        ({"kv_group_size": 32}, "kv_group_size needs kv_bits"),
        ({"quantize_activations": True, "adapter": "/x"}, "quantize_activations and adapter exclude each other"),
        ({"draft_tokens": 17}, "draft_tokens must be at least 1 and at most 16"),
    ],
)
def test_settings_of_a_name_that_exclude_each_other_are_refused_with_their_line(
    mlxk: Machine, values: dict[str, Any], fault: str
) -> None:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    mlxk.write(f'[models.poet]\nmodel = "demo"\n{lines}')
    refused = mlxk("serve", "--model", "poet")
    assert (refused.status, fault in refused.err, "config.toml: line" in refused.err) == (1, True, True)


def test_a_draft_model_of_the_settings_is_what_a_flag_of_run_is_about(mlxk: Machine) -> None:
    mlxk.write('[models.poet]\nmodel = "demo"\ndraft_model = "demo"\n')
    assert mlxk("run", "poet", "Hello", "--no-stdin", "--no-server", "--draft-tokens", "2").status == 0
    refused = mlxk("run", "demo", "Hello", "--no-stdin", "--no-server", "--draft-tokens", "2")
    assert (refused.status, refused.out) == (1, "")
    assert "--draft-tokens needs --draft-model" in refused.err


def test_switches_that_combine_give_the_text_of_each_without_its_draft_model(mlxk: Machine, tmp_path: Path) -> None:
    base = build(tmp_path / "llama", head_dim=32, hidden_size=128, intermediate_size=512)
    adapter, draft = write_adapter(tmp_path / "lora", base), build(tmp_path / "draft", head_dim=32)
    settings: dict[str, dict[str, Any]] = {
        "adapter": {"adapter": str(adapter)},
        "bits": {"kv_bits": 8},
        "both": {"adapter": str(adapter), "kv_bits": 8},
        "bounded": {"adapter": str(adapter), "max_kv_size": 64},
        "budget": {"adapter": str(adapter), "thinking_budget": 4},
    }
    drafted = {
        f"{name}-draft": {**settings[name], "draft_model": draft.directory} for name in ("adapter", "bits", "both")
    }
    mlxk.write(
        "".join(
            f"[models.{name}]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in {"model": base.directory, **values}.items())
            for name, values in {**settings, **drafted}.items()
        )
    )
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    with mlxk.serve("--pin", "both") as server:
        texts = {}
        for name in (*settings, *drafted):
            body = {"model": name, "prompt": PROMPT, "temperature": 0, "max_tokens": 16}
            status, _, answer = server.post("/v1/completions", body)
            assert status == 200, answer
            texts[name] = answer["choices"][0]["text"]
            chat = {"model": name, "messages": [{"role": "user", "content": PROMPT}], "response_format": schema}
            status, _, held = server.post("/v1/chat/completions", {**chat, "max_tokens": 40})
            assert (status, held["choices"][0]["message"]["content"]) in [(200, '"yes"'), (200, '"no"')]
        for name in ("adapter", "bits", "both"):
            assert texts[f"{name}-draft"] == texts[name]
        assert len({texts["adapter"], texts["bits"]}) == 2
