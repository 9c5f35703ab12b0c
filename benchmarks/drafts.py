"""What a draft model gains or costs one answer, with random models that agree always or hardly ever.

    python benchmarks/drafts.py [ROUNDS]

The model has twelve layers, of which the last ten add nothing: a draft model of the first two is always right at a
sixth of the work, one with other weights is not. An EAGLE-3 drafter of one layer is right for a model as large that
repeats itself. Prints medians of tokens per second, by the clock and of the processor, taken in turns: without a draft
model, with one by default, which the clock may give up, and with one that the request names.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import mlx.core as mx
import mlx_lm
from doubles.event_log import InMemoryEventLog
from mlx_lm.utils import save_model
from models.tiny_drafters import build_drafter, repeating
from models.tiny_models import build

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import Finished, GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

LAYERS, DRAFT_LAYERS = 12, 2
NEW_TOKENS = 128


SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def pair(folder: Path) -> tuple[ModelHandle, ModelHandle, ModelHandle]:
    """Write a model, a draft model that is always right, and one that is not."""
    right = build(folder / "right", num_hidden_layers=DRAFT_LAYERS, **SHAPE)
    wrong = build(folder / "wrong", num_hidden_layers=DRAFT_LAYERS, seed=9, **SHAPE)
    model = build(folder / "model", num_hidden_layers=LAYERS, **SHAPE)
    network, draft = mlx_lm.load(model.directory)[0], mlx_lm.load(right.directory)[0]
    network.update(draft.parameters())
    for layer in network.layers[DRAFT_LAYERS:]:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight = mx.zeros_like(last.weight)
    save_model(model.directory, network)
    return model, right, wrong


def speed(
    engine: MlxTextGenerator, model: ModelHandle, draft: ModelHandle | None, *, required: bool
) -> tuple[float, float]:
    """Return the tokens per second of one answer, by the clock and of the processor."""
    options = EngineOptions(draft_model=draft, draft_required=required)
    settings = GenerationSettings(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    request = GenerationRequest(model, "The quick brown fox", settings, engine_options=options)
    used = time.process_time()
    (end,) = (event for event in engine.submit(request) if isinstance(event, Finished))
    return (NEW_TOKENS - 1) / end.timings.generation_seconds, NEW_TOKENS / (time.process_time() - used)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        model, right, wrong = pair(Path(folder))
        same = repeating(build(Path(folder, "same"), num_hidden_layers=LAYERS, **SHAPE))
        drafters = [build_drafter(Path(folder, f"{right}"), "eagle3", same, right=right) for right in (True, False)]
        cases = [("without", model, None, False), ("without, repeating itself", same, None, False)]
        for name, drafted, draft in (
            ("draft model, always right", model, right),
            ("draft model, hardly ever right", model, wrong),
            ("EAGLE-3, always right", same, drafters[0]),
            ("EAGLE-3, hardly ever right", same, drafters[1]),
        ):
            cases += [
                (f"{name}, by default", drafted, draft, False),
                (f"{name}, named by the request", drafted, draft, True),
            ]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in cases}
        engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
        for number in range(rounds + 1):
            for name, drafted, draft, required in cases:
                value = speed(engine, drafted, draft, required=required)
                if number:  # the first round warms up
                    found[name].append(value)
        engine.close()
    for name, values in found.items():
        clock, processor = map(statistics.median, zip(*values, strict=True))
        print(f"{name}: {clock:.1f} tokens/s, {processor:.1f} in a second of the processor")


if __name__ == "__main__":
    main()
