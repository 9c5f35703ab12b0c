"""Time and CPU of ``mlxk pull`` against ``hf download`` of the same repository, from a hub on the loopback interface.

    python benchmarks/pull.py [ROUNDS] [MEBIBYTES]

The hub runs in a process of its own. Rounds are interleaved, caches are fresh, and the figures are whole processes:
medians of wall seconds and of CPU seconds, user and system together. mlxk also hashes every byte and brings it to the
disk; the hub client does neither.
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HUB = Path(__file__).parents[1] / "tests" / "hub" / "server.py"
MEBIBYTE = 1024 * 1024
COMMANDS = {
    "mlxk pull": [sys.executable, "-m", "mlxk", "pull", "org/model", "--json"],
    "hf download": [str(Path(sys.executable).parent / "hf"), "download", "org/model", "-q"],
}


def main(rounds: int, mebibytes: int) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "repositories" / "org" / "model", mebibytes)
        hub = subprocess.Popen(
            [sys.executable, str(HUB), f"{scratch}/repositories"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert hub.stdout is not None
        address = hub.stdout.readline().strip()
        samples = [
            {name: measured(command, address, f"{scratch}/{name}-{number}") for name, command in COMMANDS.items()}
            for number in range(rounds)
        ]
        hub.communicate("")
    results: dict[str, dict[str, object]] = {}
    for name in COMMANDS:
        wall, cpu = (statistics.median(sample[name][which] for sample in samples) for which in (0, 1))
        results[name] = {
            "seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "mib_per_second": round(mebibytes / wall),
        }
    ours, theirs = ([sample[name] for sample in samples] for name in COMMANDS)
    throughput = statistics.median(their[0] / our[0] for our, their in zip(ours, theirs, strict=True))
    cpu_ratio = statistics.median(our[1] / their[1] for our, their in zip(ours, theirs, strict=True))
    print(json.dumps({**results, "throughput_ratio": round(throughput, 2), "cpu_ratio": round(cpu_ratio, 2)}, indent=2))
    return 0


def write_model(directory: Path, mebibytes: int) -> None:
    """Write a model of three weight files of random bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    source = random.Random(0)
    for number, share in enumerate((0.5, 0.3, 0.2)):
        with (directory / f"model-{number + 1:05d}-of-00003.safetensors").open("wb") as file:
            for _ in range(max(1, round(mebibytes * share))):
                file.write(source.randbytes(MEBIBYTE))


def measured(command: list[str], address: str, home: str) -> tuple[float, float]:
    """Return the wall and CPU seconds of one run with an empty cache."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "HF_HOME": home,
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["rm", "-rf", home], check=True)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main(*(int(each) for each in (sys.argv[1:] + ["5", "64"][len(sys.argv) - 1 :]))))
