"""Draws the picture of a terminal in the README: what the program prints for a few commands, in ``docs/pictures/``.

Each command runs on a pseudo-terminal of its own, with an empty home, so that the picture is the same on every machine
but for the ages of files. Run without arguments; the tests compare what the picture says with what is printed today.
"""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "terminal.svg"
COLUMNS = 88
ROWS = 50

COMMANDS = (
    "mlxk list",
    'mlxk run demo "What is mlxk?"',
    'mlxk run demo-vision "What color is it?" --image demo-vision/blue-square.jpg | tail -1',
    "mlxk run demo-speech --audio demo-speech/hello.wav",
)

FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""Fonts that a browser would fetch from elsewhere; without them it takes a fixed-width font of its own."""


def main() -> int:
    """Draw the picture anew."""
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(), encoding="utf-8")
    return 0


def drawn() -> str:
    """Run every command, and return the picture of their output as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as home:
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), command), soft_wrap=True)
            console.print(Text.from_ansi(printed(command, home)))
            console.print()
    return FONTS.sub("", console.export_svg(title="mlxk", unique_id="mlxk"))


def printed(command: str, home: str) -> str:
    """Return what a shell command prints on a terminal; one that fails ends the program with its errors."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        env=environment(home),
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=subprocess.PIPE,
    )
    os.close(its)
    shown = b"".join(iter(lambda: piece(ours), b""))
    os.close(ours)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command}: {errors.decode()}")
    return shown.decode().replace("\r\n", "\n").rstrip()


def piece(terminal: int) -> bytes:
    """Return the next output of a terminal, empty at its end, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def environment(home: str) -> dict[str, str]:
    """Return the variables of somebody new, with this program on the path."""
    return {
        "HOME": home,
        "HF_HOME": f"{home}/hf",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "MLXK2_USE_SERVER": "0",
    }


def said(picture: str) -> list[str]:
    """Return the lines of text in a picture, with one age for all, and with blanks and rules of one length."""
    rows: dict[float, str] = defaultdict(str)
    for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text"):
        rows[float(element.get("y", "0"))] += "".join(element.itertext())
    lines = (" ".join(row.split()) for _, row in sorted(rows.items()))
    return [re.sub(r"-{2,}", "--", re.sub(r"just now|\d+\w+ ago", "AGE", line)) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
