"""Shows mlxk images of every format and oddity, and compares its tables with what exiftool reads.

    make images
    python tests/images/run.py [--count 500] [--seed 15] [--mlxk COMMAND] [--exiftool PROGRAM] [--keep FOLDER]

The images are made by a seed: pixels by Pillow, EXIF written byte by byte or by exiftool. Each is asked about over
HTTP, and those that are taken again on the command line, several at a time. An image that is whole must be taken if its
format is, and its row must say what exiftool reads, as far as that is plausible; a damaged one must be answered or
refused with a reason. It needs the program exiftool, so it is run by hand and is not a test of the suite.
"""

import argparse
import base64
import datetime
import http.client
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from photos import Photo, make

from mlxk.domain.generation.media_facts import camera_name

Row = tuple[str, str, str]
"""Place, date and camera, ``-`` for what is unknown."""

FIELDS = ("IFD0:Make", "IFD0:Model", "ExifIFD:DateTimeOriginal", "ExifIFD:CreateDate")
PLACE = ("GPSLatitude", "GPSLatitudeRef", "GPSLongitude", "GPSLongitudeRef", "GPSDateStamp", "GPSTimeStamp")
_TIME = re.compile(r"(\d{4})\D([ \d]\d)\D([ \d]\d)[ T]([ \d]\d):([ \d]\d)(?::([ \d]\d))?")
_ROW = re.compile(
    r"^\| \d+ \| (?P<file>\S+) \|(?: (?P<original>\S+) \|)? (?P<place>.*) \| (?P<date>.*) \| (?P<camera>.*) \|$", re.M
)
BATCH = 50


def read_by_exiftool(exiftool: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the tags of all images of a folder, by file name; fractions as they are stored."""
    wanted = ["-ExifTool:Warning", *(f"-{name}" for name in FIELDS)]
    wanted += [f"-GPS:{name}" for name in PLACE]
    command = [exiftool, "-j", "-b", "-n", "-G1", "-q", "-q", "-m", *wanted, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return {Path(each["SourceFile"]).name: each for each in json.loads(done.stdout)}


def gave_up(tags: dict[str, Any]) -> bool:
    """Whether exiftool left a directory out whose address looked to it like that of one before, as in some HEIC."""
    return "references previous" in str(tags.get("ExifTool:Warning"))


def _text(value: object) -> str:
    """Return a text of exiftool's: it writes what is no UTF-8 as base64, which is Latin-1 then."""
    text = "" if value is None else str(value)
    return base64.b64decode(text[7:]).decode("latin-1") if text.startswith("base64:") else text


def _moment(text: str) -> str | None:
    match = _TIME.match(text)
    try:
        parts = [int(each or 0) for each in match.groups()] if match else []
        return str(datetime.datetime(*parts[:5], min(parts[5], 59)))[:16] if match else None
    except ValueError:
        return None


def _angle(tags: dict[str, Any], name: str, sides: str, most: float) -> str | None:
    value, side = tags.get(f"GPS:{name}"), _text(tags.get(f"GPS:{name}Ref"))[:1].upper()
    if not isinstance(value, (int, float)) or value > most or not side or side not in sides:
        return None
    rounded = round(value, 4)
    return f"{rounded:.4f}°{sides[0] if rounded == 0 else side}"


def expected(tags: dict[str, Any]) -> Row:
    """Return the row that follows from what exiftool read."""
    north, east = _angle(tags, "GPSLatitude", "NS", 90), _angle(tags, "GPSLongitude", "EW", 180)
    day, clock = _text(tags.get("GPS:GPSDateStamp")), _text(tags.get("GPS:GPSTimeStamp"))
    times = (_text(tags.get("ExifIFD:DateTimeOriginal")), _text(tags.get("ExifIFD:CreateDate")), f"{day} {clock}")
    date = next(filter(None, map(_moment, times)), None)
    camera = camera_name(_text(tags.get("IFD0:Make")), _text(tags.get("IFD0:Model")))
    return (f"{north}, {east}" if north and east else "-", date or "-", camera or "-")


def rows(text: str) -> list[tuple[str | None, Row]]:
    """Return the rows of the tables in an answer, each with the file's name where the table has it."""
    signs = str.maketrans("", "", "📍📅📷")
    return [
        (match["original"], (*(match[name].translate(signs).strip() for name in ("place", "date", "camera")),))
        for match in _ROW.finditer(text)
    ]


class Server:
    """The server of ``mlxk``, for single images."""

    def __init__(self, mlxk: list[str]) -> None:
        self._process = subprocess.Popen(
            [*mlxk, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self._port = json.loads(self._process.stdout.readline())["data"]["port"]

    def ask(self, path: Path) -> tuple[int, str]:
        """Return the status, and the answer or the error's message."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        url = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "demo-vision", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({**body, "metadata": True}),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status == 200:
            return 200, answer["choices"][0]["message"]["content"]
        return response.status, f"{answer['error']['type']}: {answer['error']['message']}"

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)


def on_the_command_line(mlxk: list[str], folder: Path, names: list[str]) -> dict[str, Row]:
    """Show images several at a time; return their rows."""
    found: dict[str, Row] = {}
    for start in range(0, len(names), BATCH):
        files = [str(folder / name) for name in names[start : start + BATCH]]
        command = [*mlxk, "run", "demo-vision", "--chunk", "5", "--max-tokens", "1", "--image", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found.update({str(name): row for name, row in rows(done.stdout)})
    return found


def judged(photo: Photo, status: int, answer: str, tags: dict[str, Any]) -> str | None:
    """Return what is wrong with the answer to one image, or None."""
    if status not in ({200} if photo.supported and not photo.damaged else {200, 400, 422}):
        return f"status {status}: {answer}"
    if status != 200:
        return "no reason is given" if "internal" in answer or len(answer) < 30 else None
    found = [row for _, row in rows(answer)]
    if len(found) != 1:
        return f"{len(found)} rows: {answer!r}"
    same = found[0] == expected(tags)
    return None if photo.damaged or same or gave_up(tags) else f"row {found[0]}, exiftool {expected(tags)}, {tags}"


def main() -> int:
    """Make the images, show them, compare; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--mlxk", default=f"{sys.executable} -m mlxk", help="the program to test")
    parser.add_argument("--exiftool", default=shutil.which("exiftool"), help="the program to compare with")
    parser.add_argument("--keep", type=Path, help="where the images are written, else a temporary folder")
    arguments = parser.parse_args()
    if arguments.exiftool is None:
        raise SystemExit("There is nothing to compare with: install the program exiftool (libimage-exiftool-perl).")
    mlxk = shlex.split(arguments.mlxk)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        photos = make(folder, arguments.count, arguments.seed, arguments.exiftool)
        tags = read_by_exiftool(arguments.exiftool, folder)
        server, wrong, outcomes, taken, unread = Server(mlxk), list[str](), Counter[str](), list[str](), 0
        for photo in photos:
            status, answer = server.ask(folder / photo.name)
            problem = judged(photo, status, answer, tags.get(photo.name, {}))
            wrong += [f"{photo.name}: {problem}"] if problem else []
            outcomes[f"{photo.form}{', damaged' if photo.damaged else ''}: {status}"] += 1
            unread += gave_up(tags.get(photo.name, {}))
            taken += [photo.name] if status == 200 and not photo.damaged else []
        server.close()
        for name, row in on_the_command_line(mlxk, folder, taken).items():
            if row != expected(tags[name]) and not gave_up(tags[name]):
                wrong.append(f"{name} on the command line: row {row}, exiftool {expected(tags[name])}")
    known = [sum(expected(tags[name])[column] != "-" for name in taken) for column in range(3)]
    sys.stdout.write("".join(f"{each}\n" for each in [*wrong, *(f"{k}: {v}" for k, v in sorted(outcomes.items()))]))
    sys.stdout.write(
        f"{len(photos)} images, {len(taken)} compared twice: places {known[0]}, dates {known[1]}, cameras {known[2]};"
        f" exiftool itself left out a part of {unread}; {len(wrong)} wrong\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
