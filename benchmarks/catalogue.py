"""CPU seconds of ``list --json`` and ``show --json`` on a cache of many models, against the hub client's own listing.

    python benchmarks/catalogue.py [ROUNDS] [--peer COMMAND]

Each round runs every command once in a process of its own, cold, one after the other, so that a noisy machine disturbs
them alike. A first round that is not counted leaves compiled modules behind for all. Printed are medians of CPU
seconds, the median of the ratios within a round (peer / ours), and how our cost grows from 50 to 800 models. ``--peer``
adds the executable of another installed tool that understands ``list --json``.
"""

import argparse
import json
import os
import resource
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS, FILES = 200, 12
SIZES = (50, 200, 800)


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Run a command and return its CPU seconds, user and system together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _compiled() -> dict[str, str]:
    """Return the environment, in which Python may keep what it compiled, as it does for users."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def safetensors(tensors: int) -> bytes:
    """Return a safetensors file of many small tensors."""
    header = {
        f"model.layers.{index}.weight": {"dtype": "F16", "shape": [8], "data_offsets": [16 * index, 16 * index + 16]}
        for index in range(tensors)
    }
    # Without blanks, as the writers of the format leave them out.
    text = json.dumps({"__metadata__": {"format": "mlx"}, **header}, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16 * tensors)


def build_cache(home: Path, models: int) -> None:
    """Write a hub cache of whole models, twelve files each, blobs and links as the hub client lays them out."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192}
    config |= {"hidden_size": 2048, "num_hidden_layers": 16, "quantization": {"bits": 4, "group_size": 64}}
    shard = safetensors(100)
    index = {
        f"model.layers.{number}.weight": f"model-0000{1 + number % 2}-of-00002.safetensors" for number in range(100)
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"temperature": 0.6}',
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}" * 200}).encode(),
        "tokenizer.json": b'{"version": "1.0", "pad": "' + b"x" * 200_000 + b'"}',
        "special_tokens_map.json": b"{}",
        "added_tokens.json": b"{}",
        "merges.txt": b"a b\n" * 100,
        "vocab.json": b"{}",
        "README.md": b"---\nlicense: mit\nlibrary_name: mlx\n---\n# A model\n",
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode(),
        "model-00001-of-00002.safetensors": shard,
        "model-00002-of-00002.safetensors": shard,
    }
    assert len(files) == FILES
    for number in range(models):
        folder = home / "hub" / f"models--org--model-{number:04d}"
        commit = f"{number:040x}"
        (folder / "blobs").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        for position, (name, content) in enumerate(files.items()):
            blob = folder / "blobs" / f"{position:040x}"
            blob.write_bytes(content)
            (folder / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob.name}")


def compare(rounds: int, peers: dict[str, list[str]]) -> None:
    """Print our cost beside the peers'."""
    ours = {
        "mlxk list --json": [sys.executable, "-m", "mlxk", "list", "--json"],
        "mlxk show X --json": [sys.executable, "-m", "mlxk", "show", "model-0100", "--json"],
    }
    with tempfile.TemporaryDirectory() as folder:
        build_cache(Path(folder), MODELS)
        environment = {**_compiled(), "HF_HOME": folder, "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        samples = [
            {name: cpu_seconds(command, environment) for name, command in {**ours, **peers}.items()}
            for _ in range(rounds + 1)
        ][1:]
    print(f"{MODELS} models x {FILES} files, median of {rounds} rounds")
    for name in samples[0]:
        print(f"  {name:<28} {statistics.median(sample[name] for sample in samples):.3f} s CPU")
    for name in ours:
        ratio = statistics.median(min(sample[peer] for peer in peers) / sample[name] for sample in samples)
        print(f"  cheapest peer / {name:<19} {ratio:.2f} x")


def growth(rounds: int) -> None:
    """Print how the cost grows with the number of models."""
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "mlxk", "list", "--json"]
        idle = statistics.median(cpu_seconds(command, {**_compiled(), "HF_HOME": empty}) for _ in range(rounds))
    print(f"growth (an empty cache costs {idle:.3f} s, not counted)")
    for models in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            build_cache(Path(folder), models)
            environment = {**_compiled(), "HF_HOME": folder}
            seconds = statistics.median(cpu_seconds(command, environment) for _ in range(rounds)) - idle
        print(f"  {models:4d} models: {seconds:.3f} s, {seconds / models * 1000:.3f} ms a model")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=7)
    parser.add_argument("--peer", help="another tool's executable, for example /path/to/venv/bin/mlxk2")
    arguments = parser.parse_args()
    peers = {"hf cache ls --json": [str(Path(sys.executable).with_name("hf")), "cache", "ls", "--json"]}
    if arguments.peer:
        peers[f"{arguments.peer} list --json"] = [*shlex.split(arguments.peer), "list", "--json"]
    compare(arguments.rounds, peers)
    growth(max(3, arguments.rounds // 2))


if __name__ == "__main__":
    main()
