"""Clips on the command line: the installed program with the model that comes with it."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models.clips import box, greys, with_tags, written
from PIL import Image, ImageDraw

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e

FIGURES = {"red circle": (220, 20, 20), "blue square": (30, 60, 230)}


def clip_of(path: Path, *names: str, container: str = "mp4", tags: bytes = b"") -> str:
    """Write a clip that shows figures for two seconds each, and return the name of its file."""
    frames = []
    for name in names:
        image = Image.new("RGB", (112, 112), (225, 215, 235))
        pen = ImageDraw.Draw(image)
        (pen.ellipse if name.endswith("circle") else pen.rectangle)([24, 24, 88, 88], fill=FIGURES[name])
        frames += [np.asarray(image)] * 8
    data = written(frames, container, 4.0)
    path.write_bytes(with_tags(data, tags) if tags else data)
    return path.name


def said(output: str) -> str:
    """Return what was said, without the tables."""
    return re.sub(r"<details>.*?</details>", "", output, flags=re.DOTALL).strip()


def test_frames_of_a_clip_are_named_in_order_after_a_table(mlxk: Program, tmp_path: Path) -> None:
    place = b"+48.2500-011.5000/"
    tags = box(b"udta", box(b"\xa9xyz", struct.pack(">HH", len(place), 0) + place))
    clip = clip_of(tmp_path / "walk.mov", "red circle", "blue square", container="mov", tags=tags)
    done = mlxk("run", "demo-vision", "--video", clip)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<summary>🎬 Video Metadata (1 clip)</summary>" in done.stdout
    assert "| Video | Filename | Original | Duration | Size | Codec | Frames | Location | Date |" in done.stdout
    cells = "walk.mov | 4.0 s | 112x112 | mpeg4 | 4 of 16 | 📍 48.2500°N, 11.5000°W | - |"
    assert said(done.stdout) == "A red circle. A red circle. A blue square. A blue square."
    assert re.search(rf"\| 1 \| video_[0-9a-f]{{8}}\.mov \| {re.escape(cells)}", done.stdout)


def test_the_model_gets_each_frame_with_its_time(mlxk_here: Program, tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "walk.mp4", "red circle", "blue square")
    done = mlxk_here(
        "run", "demo-vision", "What happens?", "--video", clip, "--fps", "2", "--max-frames", "6", "--show-prompt"
    )
    times = re.findall(r"Frame at (\d\.\d) s:<\|vision_start\|><\|image_pad\|><\|vision_end\|>", done.stdout)
    assert times == ["0.0", "0.8", "1.5", "2.2", "3.0", "3.8"]
    assert "What happens?<|im_end|>" in done.stdout


CLIPS = Path(__file__).parents[2] / "tools" / "demo_vision" / "clips.py"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_clip_of_the_demo_tool_is_named_in_order(seed: int, mlxk_here: Program, tmp_path: Path) -> None:
    tool = [sys.executable, str(CLIPS), "clip.mp4", "--seed", str(seed)]
    done = subprocess.run([*tool, "--say"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said(mlxk_here("run", "demo-vision", "--video", "clip.mp4").stdout) == done.stdout.strip()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_prompt_stands_anywhere_and_may_name_the_clip(order: int, mlxk_here: Program, tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "walk.mp4", "red circle")
    words = (
        ["--video", clip, "What is shown?"],
        ["What is shown?", "--video", clip],
        ["What is shown?", f"./{clip}"],
    )[order]
    done = mlxk_here("run", "demo-vision", *words, "--json", "--show-prompt")
    found = json.loads(done.stdout)["data"]
    assert (done.returncode, found["prompt"]) == (0, "What is shown?")
    assert found["text"].count("Frame at") == 4


def test_clips_and_images_are_shown_together(mlxk_here: Program, tmp_path: Path) -> None:
    clips = [clip_of(tmp_path / f"{name}.mp4", name) for name in FIGURES]
    media = ["--video", *clips, "--image", "demo-vision/red-circle.png", "--max-frames", "2"]
    done = mlxk_here("run", "demo-vision", "Compare.", *media, "--show-prompt")
    labels = re.findall(r"Image \d:|Video \d:|Frame at \d\.\d s:", done.stdout)
    assert labels == [
        "Image 1:",
        "Video 1:",
        *["Frame at 0.0 s:", "Frame at 1.8 s:"],
        "Video 2:",
        *["Frame at 0.0 s:", "Frame at 1.8 s:"],
    ]
    table = mlxk_here("run", "demo-vision", *media).stdout
    assert "📸 Image Metadata (1 image)" in table
    assert "🎬 Video Metadata (2 clips)" in table


def test_frames_are_as_small_as_asked_for(mlxk_here: Program, tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "walk.mp4", "red circle")
    done = mlxk_here("run", "demo-vision", "--video", clip, "--max-pixels", "56x56")
    assert (done.returncode, "112x112" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "status", "fault"),
    [
        (["--video", "absent.mp4"], 2, "Clip not found: absent.mp4"),
        (["--video", "notes.mp4"], 2, "--video: 'notes.mp4': is not a clip in a known container"),
        (["--video", "list.m3u8"], 2, "--video: 'list.m3u8': is not a clip in a known container"),
        (["--video", "folder"], 2, "--video: 'folder' is no regular file"),
        (["--video", "cut.mp4"], 2, "'cut.mp4' is damaged, or no MP4 with frames that can be decoded"),
        (["--video", "good.mp4", "--fps", "0"], 2, "--fps must be above 0 and at most 60"),
        (["--video", "good.mp4", "--max-frames", "129"], 2, "--max-frames must be at least 1 and at most 128"),
        (["--video", "good.mp4", "--max-pixels", "2x2"], 2, "--max-pixels must be at least 256"),
        (["--max-frames", "4"], 2, "--max-frames requires --video FILE."),
        (
            ["--video", "good.mp4", "--image", "demo-vision/red-circle.png", "--chunk", "2"],
            2,
            "--chunk and --video exclude",
        ),
        (["--video", "good.mp4", "--tools", "t.json"], 2, "--tools and --video exclude each other"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    arguments: list[str], status: int, fault: str, mlxk_here: Program, tmp_path: Path
) -> None:
    (tmp_path / "good.mp4").write_bytes(written(greys(4)))
    (tmp_path / "cut.mp4").write_bytes(written(greys(4))[:200])
    (tmp_path / "notes.mp4").write_text("just words")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nfile:///etc/hostname\n")
    (tmp_path / "t.json").write_text("[]")
    (tmp_path / "folder").mkdir()
    done = mlxk_here("run", "demo-vision", "What happens?", *arguments)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert fault in done.stderr


def test_a_text_model_takes_no_clip(mlxk_here: Program, tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "walk.mp4", "red circle")
    refused = mlxk_here("run", "demo", "What happens?", "--video", clip)
    assert refused.returncode != 0
    assert "demo" in refused.stderr
    words = mlxk_here("run", "demo", f"What is mlxk? ./{clip}")
    assert f"[./{clip} stays words: 'demo' takes no video]" in words.stderr
    assert "'demo' is a text model and takes no video" in mlxk_here("run", "demo", "--video", clip).stderr
