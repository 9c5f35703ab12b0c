"""``mlxk bench --url`` beside GuideLLM, against the same server.

    python benchmarks/beside_guidellm.py GUIDELLM [--rounds N] [--streams N,N] [--requests N] [--tokens N]
        [--large | --paced S]

GUIDELLM is its program, in an environment of its own: ``uv venv D && uv pip install --python D/bin/python guidellm``,
then ``D/bin/guidellm``. One server, one random model, whose tokenizer GuideLLM reads from its folder. In each round
both ask as many requests with prompts of as many tokens, in turns; figures are medians of the rounds. The exit status
is 1 when one of them differs by more than a tenth. With ``--large`` the model has 29 million parameters in place of 3.
With ``--paced`` the server has scripted answers in place of the model, a token every S seconds: what differs then is
how the two measure, and not what else the machine does.

The model only generates tokens that are text. Others, such as parts of a character, arrive with a later token, and both
programs take the first part of the answer for the first token: they would measure answers from one token or another,
as the prompts have it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

import mlx.core as mx  # noqa: E402
from server import SHAPE, Server, make_model  # noqa: E402 - needs the path above
from tokenizers import Tokenizer  # noqa: E402

LARGE = {
    "hidden_size": 512,
    "num_hidden_layers": 10,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""29 million parameters."""
WORDS = 16
ALLOWED = 0.1
FIGURES = ("first token, ms", "between tokens, ms", "end to end, ms", "tokens/s")

Figures = Mapping[int, Sequence[float]]
"""By the number of streams, in the order of ``FIGURES``."""


class Contest:
    """One server and the two programs that ask it."""

    def __init__(self, server: Server, model: str, tokenizer: str, options: argparse.Namespace) -> None:
        self._guidellm, self._url, self._model = options.guidellm, f"http://127.0.0.1:{server.port}", model
        self._tokenizer = tokenizer
        self._options = options
        self._prompt_tokens = WORDS
        self._seed = 0

    def calibrate(self) -> tuple[float, float]:
        """Have GuideLLM send prompts of as many tokens as ours; return both, as the server counts them."""
        wanted = self._bench(1, 2)["prompt_tokens"] / 2
        for _ in range(2):
            found = self._guide([1], 2)[0]["metrics"]["prompt_token_count"]["successful"]["mean"]
            if abs(found - wanted) < 1:
                break
            self._prompt_tokens += round(wanted - found)
        return wanted, found

    def ours(self) -> Figures:
        """Measure with ``mlxk bench``."""
        return {
            streams: _ours(self._bench(streams, self._options.requests // streams)) for streams in self._options.streams
        }

    def theirs(self) -> Figures:
        """Measure with GuideLLM."""
        found = self._guide(self._options.streams, self._options.requests)
        return {streams: _theirs(each["metrics"]) for streams, each in zip(self._options.streams, found, strict=True)}

    def _bench(self, streams: int, repeats: int) -> dict[str, Any]:
        words = ["bench", "--url", self._url, self._model, "--streams", str(streams), "--json"]
        words += ["-p", str(WORDS), "-n", str(self._options.tokens), "-r", str(repeats)]
        done = subprocess.run([sys.executable, "-m", "mlxk", *words], capture_output=True, text=True, check=True)
        level: dict[str, Any] = json.loads(done.stdout)["data"]["levels"][0]
        return level

    def _guide(self, streams: Sequence[int], requests: int) -> list[dict[str, Any]]:
        self._seed += 1
        with tempfile.TemporaryDirectory() as folder:
            result, plan = Path(folder) / "result.json", Path(folder) / "plan.json"
            backend = {"kind": "openai_http", "target": self._url, "model": self._model}
            data = {
                "kind": "synthetic_text",
                "prompt_tokens": self._prompt_tokens,
                "output_tokens": self._options.tokens,
            }
            spec = {
                "backend": {**backend, "extras": {"body": {"temperature": 0}}},
                "profile": {"kind": "concurrent", "streams": list(streams)},
                "constraints": [{"kind": "max_requests", "count": requests}],
                "tokenizer": {"kind": "huggingface_auto", "model": self._tokenizer},
                "data": [data],
                "seed": {"kind": "static", "value": self._seed},  # else every run sends what the server has kept
                "outputs": [{"kind": "json", "path": str(result)}],
            }
            plan.write_text(json.dumps({"metadata": {"name": "beside"}, "spec": spec}))
            words = [self._guidellm, "run", "--config", str(plan), "--disable-console"]
            offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(words, env=offline, capture_output=True, text=True, check=False)
            if done.returncode or not result.exists():
                raise RuntimeError(f"{self._guidellm} fails: {(done.stdout + done.stderr)[-2000:]}")
            found: list[dict[str, Any]] = json.loads(result.read_text())["benchmarks"]
            return found


def _ours(level: dict[str, Any]) -> list[float]:
    times = [level[f"{name}_seconds"]["p50"] * 1000 for name in ("first_token", "inter_token", "end_to_end")]
    return [*times, level["tokens_per_second"]]


def _theirs(metrics: dict[str, Any]) -> list[float]:
    found = {
        name: each["successful"] for name, each in metrics.items() if isinstance(each, dict) and "successful" in each
    }
    times = [found["time_to_first_token_ms"]["median"], found["inter_token_latency_ms"]["median"]]
    return [*times, found["request_latency"]["median"] * 1000, found["output_tokens_per_second"]["mean"]]


def only_text(model: str) -> None:
    """Have the most likely token be one of letters, digits and spaces always."""
    place, tokenizer = Path(model, "model.safetensors"), Tokenizer.from_file(f"{model}/tokenizer.json")
    texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    weights = dict(mx.load(str(place)))
    kept = mx.array([float(text.isascii() and text.replace(" ", "x").isalnum()) for text in texts])
    weights["model.embed_tokens.weight"] *= kept[:, None]  # its rows give the logits, too
    mx.eval(weights)
    mx.save_safetensors(str(place), weights, {"format": "mlx"})


def main() -> int:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("guidellm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=lambda text: [int(each) for each in text.split(",")], default=[1, 4])
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--large", action="store_true")
    kind.add_argument("--paced", type=float)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), "beside", LARGE if options.large else SHAPE)
        only_text(model)
        command = f"{sys.executable} -m mlxk serve --allow-model-paths --port {{port}} --model {{model}}"
        name = model
        if options.paced is not None:
            script, name = Path(__file__).parents[1] / "tests" / "serving" / "scripted_serve.py", "demo"
            command = f"env STEP_SECONDS={options.paced} {sys.executable} {script} '{{{{\"port\": {{port}}}}}}'"
        server = Server("mlxk", command, name)
        try:
            contest = Contest(server, name, model, options)
            print("prompt tokens, ours and theirs:", *contest.calibrate())
            rounds: list[tuple[Figures, Figures]] = []
            for index in range(options.rounds):
                first, second = (contest.ours, contest.theirs) if index % 2 else (contest.theirs, contest.ours)
                one, other = first(), second()
                rounds.append((one, other) if index % 2 else (other, one))
                print(f"round {index + 1}: {rounds[-1]}", file=sys.stderr)
        finally:
            server.close()
    return report(rounds, options.streams)


def report(rounds: Sequence[tuple[Figures, Figures]], streams: Sequence[int]) -> int:
    """Print the medians; return the exit status."""
    worst = 0.0
    print("| streams | figure | bench --url | GuideLLM | ratio |\n|--:|---|--:|--:|--:|")
    for many in streams:
        for place, name in enumerate(FIGURES):
            ours, theirs = (statistics.median(each[side][many][place] for each in rounds) for side in (0, 1))
            worst = max(worst, abs(ours / theirs - 1))
            print(f"| {many} | {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
