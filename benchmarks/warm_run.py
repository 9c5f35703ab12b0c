"""CPU seconds of ``mlxk run`` beside a server that has the model in memory, up to the first word, and without a server.

    python benchmarks/warm_run.py [ROUNDS]

The CPU time of the client is read when its first word arrives (on Linux from ``/proc``): the time of the server, which
is another process, is not in it. Rounds are interleaved; figures are medians.
"""

import json
import os
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PROMPT = ["run", "demo", "What is mlxk?", "--no-stdin", "--temperature", "0"]
COMMANDS = {
    "python -c pass": None,
    "mlxk --version": ["--version"],
    "mlxk show demo": ["show", "demo"],
    "mlxk run, warm": PROMPT,
    "mlxk run, cold": [*PROMPT, "--no-server"],
}
"""Arguments; None runs the bare interpreter."""


def first_word(arguments: list[str] | None, environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; return the CPU seconds and the seconds up to its first byte of output, or to its end."""
    program = ["-c", "pass"] if arguments is None else ["-m", "mlxk", *arguments]
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, *program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout is not None
    select.select([process.stdout], [], [])
    seconds = time.monotonic() - began
    spent = _cpu_seconds(process.pid)
    process.stdout.read()
    process.wait()
    if spent is None or arguments is None:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, seconds


def _cpu_seconds(process: int) -> float | None:
    """Return the CPU seconds of a running process; None where the system does not say."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(rounds: int) -> None:
    """Print one line a command: median CPU milliseconds and milliseconds up to the first word."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HOME": folder, "XDG_RUNTIME_DIR": folder, "MLXK2_USE_SERVER": "1"}
        command = [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--model", "demo", "--json"]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
        )
        assert server.stdout is not None
        json.loads(server.stdout.readline())
        try:
            samples = [
                {name: first_word(arguments, environment) for name, arguments in COMMANDS.items()}
                for _ in range(rounds)
            ]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    print(f"{'':<24} {'CPU':>9} {'first word':>12}")
    for name in COMMANDS:
        spent, seconds = (statistics.median(sample[name][part] for sample in samples) for part in (0, 1))
        print(f"{name:<24} {spent * 1000:6.0f} ms {seconds * 1000:9.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
