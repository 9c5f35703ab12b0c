"""What an engine keeps after thousands of requests over every combination of switches that is allowed.

    python benchmarks/switches_soak.py [--requests N]

The requests of ``tests/integration/test_mlx_engine_soak.py``: twelve readers, three models, adapters, draft models,
every kind of cache, grammars, sound and unsound settings, a part given up in the middle. Memory is read between steps
of 500, with nothing running; that of MLX after everything was unloaded.
"""

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(_TESTS))
sys.path.insert(0, str(_TESTS / "integration"))

import mlx.core as mx  # noqa: E402 - needs the paths above
from doubles.event_log import InMemoryEventLog  # noqa: E402
from models.tiny_models import build, write_adapter  # noqa: E402
from test_mlx_engine_soak import Soak, allowed_switches  # noqa: E402

from mlxk.adapters.mlx.memory import EngineLimits  # noqa: E402
from mlxk.adapters.mlx.text_generator import MlxTextGenerator  # noqa: E402
from mlxk.adapters.system import SystemClock  # noqa: E402

STEP = 500


def resident_mib() -> float:
    """Return what the system says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def main(requests: int) -> int:
    """Build the models, and soak; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        handles = [
            build(folder / "llama", head_dim=32),
            build(folder / "gemma", "gemma3_text", seed=1),
            build(folder / "lfm2", "lfm2", seed=2),
        ]
        switches = allowed_switches(build(folder / "draft", seed=3), write_adapter(folder / "lora", handles[0]))
        print(f"{len(switches)} combinations of adapter, draft model and kind of cache")
        log = InMemoryEventLog()
        limits = EngineLimits(max_rows=8, prefix_cache_bytes=2**21, cache_budget_bytes=2**23, model_budget_bytes=2**20)
        engine = MlxTextGenerator(log, SystemClock(), limits)
        soak, began = Soak(handles, engine, switches), time.monotonic()
        for start in range(0, requests, STEP):
            soak.run(STEP, seed=100 + start)
            resident = resident_mib()
            engine.unload()
            gc.collect()
            mx.clear_cache()
            done, held = sum(soak.outcomes.values()), mx.get_active_memory() / 2**20
            print(
                f"{done:6} done, {len(soak.lost)} lost, {time.monotonic() - began:5.0f} s: resident {resident:.1f} MiB,"
                f" unloaded {resident_mib():.1f} MiB, of MLX {held:.2f} MiB",
                flush=True,
            )
        engine.close()
        errors = [event for event in log.events if event.level == "error"]
        print(dict(soak.outcomes), soak.lost[:5], errors[:5])
        return int(bool(soak.lost or errors))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    sys.exit(main(parser.parse_args().requests))
