"""CPU seconds of light commands against a bare interpreter: what the user waits for before anything is done.

    python benchmarks/startup.py [ROUNDS]

Rounds are interleaved, so that a noisy machine disturbs every command alike; the figures are medians, and the ratio is
taken within each round.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "mlxk --version": ["-m", "mlxk", "--version"],
    "mlxk --help": ["-m", "mlxk", "--help"],
    "mlxk list --json": ["-m", "mlxk", "list", "--json"],
    "mlxk show demo --json": ["-m", "mlxk", "show", "demo", "--json"],
    "mlxk health --json": ["-m", "mlxk", "health", "--json"],
}


def cpu_seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """Run the interpreter once and return its CPU seconds, user and system together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    """Print one line a command: median CPU milliseconds and median ratio to the bare interpreter."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "HF_HOME": empty}
        samples = [
            {name: cpu_seconds(arguments, environment) for name, arguments in COMMANDS.items()} for _ in range(rounds)
        ]
    for name in COMMANDS:
        seconds = statistics.median(sample[name] for sample in samples)
        ratio = statistics.median(sample[name] / sample["python -c pass"] for sample in samples)
        print(f"{name:<24} {seconds * 1000:7.1f} ms   {ratio:5.2f} x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
