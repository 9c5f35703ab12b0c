"""Decode many hostile clips, two at a time, and tell what came of each kind.

    python benchmarks/hostile_clips.py [COUNT]

It ends with an error where anything that a clip names was touched, or where a process is left.
"""

import collections
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from models.hostile_clips import LIMITS, hostile, left_behind, outcome, traps

from mlxk.adapters.opencv.video_decoder import OpenCvVideoDecoder


def main(count: int) -> None:
    """Decode so many clips, two at a time, and print what came of them."""
    decoder, seen, lock = OpenCvVideoDecoder(LIMITS), collections.Counter[tuple[str, str]](), threading.Lock()
    numbers, slowest = iter(range(count)), 0.0
    with traps() as (named, touched):

        def work() -> None:
            nonlocal slowest
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                kind, data = hostile(number, named)
                began = time.monotonic()
                came = outcome(data, decoder)
                with lock:
                    seen[kind, came] += 1
                    slowest = max(slowest, time.monotonic() - began)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
    for (kind, came), times in sorted(seen.items()):
        print(f"{times:5} {kind:16} {came}")
    print(f"{sum(seen.values())} clips; slowest {slowest:.1f} s; touched: {touched}; left: {left_behind()}")
    if touched or left_behind():
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
