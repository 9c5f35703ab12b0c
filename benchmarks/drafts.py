"""What a draft model gains or costs one answer, with random models that agree always or hardly ever.

    python benchmarks/drafts.py [ROUNDS]

The model has twelve layers, of which the last ten add nothing: a draft model of the first two is always right at a
sixth of the work, one with other weights is not. Prints medians of tokens per second, taken in turns: without a draft
model, with one by default, which the clock may give up, and with one that the request names.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import mlx.core as mx
import mlx_lm
from doubles.event_log import InMemoryEventLog
from mlx_lm.utils import save_model
from models.tiny_models import build

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import Finished, GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

LAYERS, DRAFT_LAYERS = 12, 2
NEW_TOKENS = 128


def pair(folder: Path) -> tuple[ModelHandle, ModelHandle, ModelHandle]:
    """Write a model, a draft model that is always right, and one that is not."""
    shape = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64, "num_key_value_heads": 8}
    right = build(folder / "right", num_hidden_layers=DRAFT_LAYERS, num_attention_heads=8, **shape)
    wrong = build(folder / "wrong", num_hidden_layers=DRAFT_LAYERS, num_attention_heads=8, seed=9, **shape)
    model = build(folder / "model", num_hidden_layers=LAYERS, num_attention_heads=8, **shape)
    network, draft = mlx_lm.load(model.directory)[0], mlx_lm.load(right.directory)[0]
    network.update(draft.parameters())
    for layer in network.layers[DRAFT_LAYERS:]:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight = mx.zeros_like(last.weight)
    save_model(model.directory, network)
    return model, right, wrong


def speed(engine: MlxTextGenerator, model: ModelHandle, draft: ModelHandle | None, *, required: bool) -> float:
    """Return the tokens per second of one answer."""
    options = EngineOptions(draft_model=draft, draft_required=required)
    settings = GenerationSettings(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    request = GenerationRequest(model, "The quick brown fox", settings, engine_options=options)
    (end,) = (event for event in engine.submit(request) if isinstance(event, Finished))
    return (NEW_TOKENS - 1) / end.timings.generation_seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        model, right, wrong = pair(Path(folder))
        cases = [("without", None, False)]
        for name, draft in (("always right", right), ("hardly ever right", wrong)):
            cases += [(f"{name}, by default", draft, False), (f"{name}, named by the request", draft, True)]
        found: dict[str, list[float]] = {name: [] for name, _, _ in cases}
        engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
        for number in range(rounds + 1):
            for name, draft, required in cases:
                value = speed(engine, model, draft, required=required)
                if number:  # the first round warms up
                    found[name].append(value)
        engine.close()
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.1f} tokens/s")


if __name__ == "__main__":
    main()
