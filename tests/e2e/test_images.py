"""Images on the command line: the installed program with the model that comes with it."""

import json
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageDraw

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e

FIGURES = (("red", "circle"), ("blue", "square"), ("yellow", "circle"), ("green", "square"), ("black", "circle"))
RGB = {
    "red": (220, 20, 20),
    "blue": (30, 60, 230),
    "yellow": (250, 230, 20),
    "green": (20, 150, 40),
    "black": (5, 5, 5),
}
GROUNDS = ((255, 255, 255), (128, 128, 128), (190, 190, 190), (225, 215, 235))


def draw(path: Path, colour: str, shape: str, **options: Any) -> Path:
    """Draw a figure and return its file."""
    image = Image.new("RGB", (160, 160), (128, 128, 128))
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)([32, 32, 128, 128], fill=RGB[colour])
    image.save(path, **options)
    return path


@pytest.fixture
def drawings(tmp_path: Path) -> list[str]:
    """Draw five figures and return the names of their files."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Apple", "iPhone SE"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2023:12:06 12:19:00"
    paths = []
    for number, (colour, shape) in enumerate(FIGURES, 1):
        paths.append(draw(tmp_path / f"{number}-{colour}-{shape}.jpg", colour, shape, exif=exif, quality=95).name)
    return paths


def answers(output: str) -> list[str]:
    """Return what was said, without the tables."""
    return [part.strip() for part in re.sub(r"<details>.*?</details>", "\0", output, flags=re.DOTALL).split("\0")[1:]]


def test_the_samples_are_described_on_a_fresh_machine(mlxk: Program) -> None:
    red = mlxk("run", "demo-vision", "--image", "demo-vision/red-circle.png")
    assert (red.returncode, red.stderr, answers(red.stdout)) == (0, "", ["A red circle."])
    blue = mlxk("run", "demo-vision", "What color is it?", "--image", "demo-vision/blue-square.jpg")
    assert answers(blue.stdout) == ["It is blue."]
    assert "| 📍 32.7900°N, 16.9200°W | 📅 2023-12-06 12:19 | 📷 mlxk drawing machine |" in blue.stdout


def test_every_image_is_described_by_itself(mlxk_here: Program, drawings: list[str]) -> None:
    done = mlxk_here("run", "demo-vision", "--image", *drawings)
    assert (done.returncode, done.stderr) == (0, "")
    assert answers(done.stdout) == [f"A {colour} {shape}." for colour, shape in FIGURES]
    assert re.findall(r"<summary>(.*)</summary>", done.stdout) == [
        f"📸 Chunk {number}/5: Image {number}" for number in range(1, 6)
    ]
    assert done.stdout.startswith("<details>\n<summary>")
    assert done.stdout.count("| 📅 2023-12-06 12:19 | 📷 Apple iPhone SE |") == 5


def unseen(path: Path, chance: random.Random) -> str:
    """Draw a figure with our own pen, which the training did not use, and return what it is."""
    colour, shape = chance.choice(list(RGB)), chance.choice(["circle", "square", "triangle", "cross"])
    image = Image.new("RGB", (chance.randint(90, 300), chance.randint(90, 300)), chance.choice(GROUNDS))
    pen, radius = ImageDraw.Draw(image), min(image.size) * chance.uniform(0.25, 0.4)
    x, y = (chance.uniform(radius, side - radius) for side in image.size)
    box, arm = [x - radius, y - radius, x + radius, y + radius], radius * 0.3
    tint = tuple(min(255, max(0, part + chance.randint(-5, 5))) for part in RGB[colour])
    if shape == "circle":
        pen.ellipse(box, fill=tint)
    elif shape == "square":
        pen.rectangle(box, fill=tint)
    elif shape == "triangle":
        pen.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=tint)
    else:
        pen.rectangle([x - arm, box[1], x + arm, box[3]], fill=tint)
        pen.rectangle([box[0], y - arm, box[2], y + arm], fill=tint)
    image.save(path)
    return f"A {colour} {shape}."


def test_at_least_36_of_40_unseen_drawings_are_named(mlxk_here: Program, tmp_path: Path) -> None:
    chance = random.Random(40)
    expected = [unseen(tmp_path / f"{number:02}.png", chance) for number in range(40)]
    done = mlxk_here("run", "demo-vision", "--image", "*.png")
    assert (done.returncode, done.stderr) == (0, "")
    wrong = [pair for pair in zip(expected, answers(done.stdout), strict=True) if pair[0] != pair[1]]
    assert len(wrong) <= 4, wrong


@pytest.mark.parametrize(
    "arguments",
    [
        ["What shape is it?", "--image", "1-red-circle.jpg"],
        ["--image", "1-red-circle.jpg", "--prompt", "What shape is it?"],
        ["--image", "1-red-circle.jpg", "1-red-circle.jpg", "What shape is it?", "--chunk", "1"],
    ],
)
def test_the_prompt_stands_before_or_after(mlxk_here: Program, drawings: list[str], arguments: list[str]) -> None:
    assert set(answers(mlxk_here("run", "demo-vision", *arguments).stdout)) == {"It is a circle."}


def test_patterns_chunks_and_json(mlxk_here: Program, drawings: list[str]) -> None:
    done = mlxk_here("run", "demo-vision", "--image", "*.jpg", "--chunk", "2", "--json", "Describe each picture")
    data = json.loads(done.stdout)["data"]
    assert data["prompt"] == "Describe each picture"
    assert re.findall(r"📸 (.*)</summary>", data["response"]) == [
        "Chunk 1/3: Images 1-2",
        "Chunk 2/3: Images 3-4",
        "Chunk 3/3: Image 5",
    ]
    assert re.findall(r"^\| (\d) \| image_[0-9a-f]{8}\.jpeg \| (\S+) \|", data["response"], re.MULTILINE) == [
        (str(number), name) for number, name in enumerate(drawings, 1)
    ]
    assert data["usage"]["prompt_tokens"] > 5 * 16
    assert data["finish_reason"] == "stop"


def test_the_environment_sets_the_chunk_and_hides_the_facts(mlxk_here: Program, drawings: list[str]) -> None:
    done = mlxk_here("run", "demo-vision", "--image", *drawings, MLXK2_VISION_CHUNK_SIZE="5", MLXK2_EXIF_METADATA="0")
    assert "📸 Image Metadata (5 images)" in done.stdout
    assert "| Image | Filename | Original |\n" in done.stdout
    assert "2023" not in done.stdout


def test_an_image_held_sideways_is_seen_upright(mlxk_here: Program, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", "red", "square")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(path) as image:
        image.save(tmp_path / "turned.png", exif=exif)
    done = mlxk_here("run", "demo-vision", "--image", "turned.png")
    assert answers(done.stdout) == ["A red square."]


def test_text_alone_needs_no_image(mlxk: Program) -> None:
    done = mlxk("run", "demo-vision", "Who are you?")
    assert done.stdout == "I am demo-vision, a tiny vision model that comes with mlxk.\n"


def test_what_is_seen_goes_down_a_pipe(
    drawings: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    program = shlex.join([sys.executable, "-m", "mlxk"])
    line = (
        f'{program} run demo-vision --image *.jpg "Describe each picture" | {program} run demo - '
        '"Write a tour review. Create a table with picture names, metadata, and descriptions." > tour-review.md'
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=program_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "tour-review.md").read_text().strip()


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["demo-vision", "--image", "nosuch.jpg"], 1, "Image not found: nosuch.jpg"),
        (["demo-vision", "--image", "1-red-circle.jpg", "nosuch.png"], 1, "Image not found: nosuch.png"),
        (["demo-vision", "--image", "1-red-circle.jpg", "nosuch/*"], 1, "Image not found: nosuch/*"),
        (["demo-vision", "--image", "."], 1, "no regular file"),
        (["demo-vision", "--image", "text.jpg"], 1, "is not an image of a known format"),
        (["demo-vision", "--image", "cut.jpg"], 1, "'cut.jpg' is damaged"),
        (["demo-vision", "--image", "1-red-circle.jpg", "--chunk", "0"], 1, "chunk must be at least 1"),
        (["demo-vision", "--image", "1-red-circle.jpg", "--chunk", "6"], 1, "at most 5 (got 6)"),
        (["demo-vision", "--chunk", "2", "x"], 2, "--chunk requires --image"),
        (["demo-speech", "--image", "1-red-circle.jpg", "--audio", "x.wav"], 2, "--image does not apply to --audio"),
        (["demo", "--image", "1-red-circle.jpg"], 1, "'demo' is a text model and takes no images"),
        (["nosuch", "--image", "1-red-circle.jpg"], 1, "nosuch"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_by_name(
    mlxk_here: Program, drawings: list[str], tmp_path: Path, arguments: list[str], status: int, named: str
) -> None:
    (tmp_path / "text.jpg").write_text("This is no image.")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / drawings[0]).read_bytes()[:600])
    done = mlxk_here("run", *arguments)
    assert (done.returncode, named in done.stderr.splitlines()[0]) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert answers(done.stdout) == []
