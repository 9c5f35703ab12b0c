"""The shares of architectures: two processes with a part each compute the tokens of one with the whole model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import utils
from mlx_lm.models.cache import make_prompt_cache
from models import tiny_models

pytestmark = pytest.mark.mlx

RANK = """
import json, sys
import mlx.core as mx
from mlxk.adapters.mlx.loading.model_files import read_config
from mlxk.adapters.mlx.ranks.ring import Ring
from mlxk.adapters.mlx.ranks.share import Share, cut_of, load_share
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.entrypoints.settings import temporary_environment

ring = Ring("127.0.0.1")
print(ring.port, flush=True)
orders = json.loads(sys.stdin.readline())
rank, addresses = orders["rank"], orders["addresses"]
ring.meet(rank, addresses, 60.0)
print("met", flush=True)
sys.stdin.readline()  # a neighbour that joins earlier would be taken for one that only meets
group = ring.join(temporary_environment, 60.0)
for directory in orders["models"]:
    handle = ModelHandle(directory, directory, Origin.WORKSPACE)
    cut = cut_of(handle, read_config(handle), len(addresses))
    share = Share(load_share(handle, cut, group, WeightForm.STORED)[0], group)
    share.do("make", 0)
    tokens, found = mx.array([orders["prompt"]]), []
    for _ in range(orders["count"]):
        logits = share.read(0, tokens if rank == 0 else mx.zeros(tokens.shape, mx.int32), logits=True)
        tokens = logits[:, -1:].argmax(-1)
        found.append(tokens.item())
    if rank == 0:
        print(json.dumps([cut.value, found]), flush=True)
"""

ONE_PAIR = {"num_key_value_heads": 1}
CAPS = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
THREE_HEADS = {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "tensor"),
    "qwen3": ("qwen3", {}, "tensor"),
    "experts": ("qwen3_moe", EXPERTS, "tensor"),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, "tensor"),
    "gemma": ("gemma", ONE_PAIR, "tensor"),
    "gemma2": ("gemma2", CAPS, "tensor"),
    "gemma2 with one pair": ("gemma2", ONE_PAIR | CAPS, "tensor"),
    "gemma3": ("gemma3_text", {}, "tensor"),
    "layers": ("qwen3_moe", EXPERTS | THREE_HEADS, "pipeline"),
}
PROMPT = list(range(40, 80))  # longer than the window of gemma3
COUNT = 5


def tokens_of_one(directory: Path) -> list[int]:
    """Return what one process computes."""
    network, _ = utils.load_model(directory)
    cache = make_prompt_cache(network)
    tokens, found = mx.array([PROMPT]), []
    for _ in range(COUNT):
        tokens = network(tokens, cache=cache)[:, -1:].argmax(-1)
        found.append(int(tokens.item()))
    return found


def test_two_shares_compute_what_the_whole_model_does(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in MODELS]
    for folder, (architecture, config, _) in zip(folders, MODELS.values(), strict=True):
        tiny_models.build(folder, architecture, **config)
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    addresses = [f"127.0.0.1:{rank.stdout.readline().strip()}" for rank in ranks if rank.stdout is not None]
    orders = {"addresses": addresses, "prompt": PROMPT, "count": COUNT, "models": [str(each) for each in folders]}
    for number, rank in enumerate(ranks):
        assert rank.stdin is not None
        rank.stdin.write(json.dumps({**orders, "rank": number}) + "\n")
        rank.stdin.flush()
    assert [rank.stdout.readline() for rank in ranks if rank.stdout is not None] == ["met\n"] * 2
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    expected = {
        name: [cut, tokens_of_one(folder)] for folder, (name, (_, _, cut)) in zip(folders, MODELS.items(), strict=True)
    }
    printed = [rank.communicate(timeout=100)[0].splitlines() for rank in ranks]
    assert dict(zip(MODELS, map(json.loads, printed[0]), strict=True)) == expected
    assert [rank.returncode for rank in ranks] == [0, 0]
