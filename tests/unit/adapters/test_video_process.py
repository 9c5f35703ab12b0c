"""The process that decodes clips can open nothing once it has given that up."""

import subprocess
import sys
from pathlib import Path

from mlxk.adapters.opencv import video_decoder

PROGRAM = Path(video_decoder.__file__).with_name("video_process.py")
TRIES = """
import importlib.util, socket, sys
spec = importlib.util.spec_from_file_location("program", sys.argv[1])
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
program.give_up(10, 2**30)
tries = {
    "file": lambda: open("/etc/hostname"),
    "socket": lambda: socket.socket(),
    "memory": lambda: bytearray(2**31),
}
for name, attempt in tries.items():
    try:
        attempt()
    except (OSError, MemoryError) as error:
        print(name, type(error).__name__)
    else:
        print(name, "succeeded")
"""


def test_it_gives_up_files_sockets_and_memory() -> None:
    done = subprocess.run([sys.executable, "-c", TRIES, str(PROGRAM)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["file OSError", "socket OSError", "memory MemoryError"]
