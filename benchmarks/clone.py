"""Time and space of copying a model: sharing its blocks where the file system can, against copying every byte.

    python benchmarks/clone.py DIRECTORY [MEBIBYTES]

DIRECTORY decides which file system is measured. The space is what the file system reports as taken. Prints one JSON
object: for each way the seconds of each of five runs and the bytes taken by the last.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlxk.adapters.filesystem.workspace_draft import copy_file

RUNS = 5
MEBIBYTE = 1024 * 1024


def main(directory: str, mebibytes: int) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        source = Path(scratch) / "model.safetensors"
        block = os.urandom(MEBIBYTE)
        with source.open("wb") as file:
            for _ in range(mebibytes):
                file.write(block)
            os.fsync(file.fileno())
        method = copy_file(str(source), f"{scratch}/probe", lambda count: None)
        results: dict[str, object] = {"method": method.value, "bytes": mebibytes * MEBIBYTE}
        results["mlxk"] = measured(scratch, lambda target: copy_file(str(source), target, lambda count: None))
        results["copy"] = measured(scratch, lambda target: synced_copy(str(source), target))
    print(json.dumps(results, indent=2))
    return 0


def measured(scratch: str, copy: Callable[[str], object]) -> dict[str, object]:
    """Return the seconds of every run and the bytes that the last one took."""
    seconds, taken = [], 0
    for run in range(RUNS):
        before, began = used(scratch), time.perf_counter()
        copy(f"{scratch}/copy-{run}")
        seconds.append(round(time.perf_counter() - began, 4))
        os.sync()
        taken = used(scratch) - before
        os.unlink(f"{scratch}/copy-{run}")
        os.sync()
    return {"seconds": seconds, "bytes_taken": taken}


def synced_copy(source: str, target: str) -> None:
    """Copy every byte and bring it to the disk."""
    with open(source, "rb") as origin, open(target, "wb") as copy:
        shutil.copyfileobj(origin, copy, 8 * MEBIBYTE)
        copy.flush()
        os.fsync(copy.fileno())


def used(directory: str) -> int:
    """Return the bytes taken on the file system of a directory."""
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 256))
