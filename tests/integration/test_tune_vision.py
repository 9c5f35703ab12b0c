"""``mlxk tune`` of models that read images: what they learn, and what is checked before anything is loaded."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from models import tiny_models, tiny_vision
from PIL import Image

from mlxk.adapters.filesystem.training_files import FilesystemTrainingFiles
from mlxk.adapters.mlx.tuning.trainer import MlxModelTuner
from mlxk.adapters.pillow import PillowImageReader
from mlxk.application.example_images import ExampleImages
from mlxk.application.ports.tuning import TrainedModel, TrainingJob
from mlxk.domain.errors import ExecutionError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.tuning.data import FileCheck
from mlxk.domain.tuning.training import TrainingPoint, TuningSettings

Command = Callable[..., dict[str, Any]]
Program = Callable[..., Any]

pytestmark = pytest.mark.mlx
ASKED = {"type": "text", "text": "Who is it?"}
COLORS = {"blue": (0, 0, 255), "red": (255, 0, 0), "green": (0, 200, 0)}
NAMES = {"blue": "It is Ann.", "red": "It is Bob.", "green": "It is Zed."}


def line(content: object, said: str, **more: object) -> dict[str, object]:
    """Return an example of one question."""
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": said}], **more}


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Write images, and examples that name them in each of the forms."""
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    for name, color in COLORS.items():
        Image.new("RGB", (64, 64), color).save(tmp_path / "data" / "pictures" / f"{name}.png")
    lines = [
        line([{"type": "image_url", "image_url": {"url": "pictures/blue.png"}}, ASKED], NAMES["blue"]),
        line([{"type": "image"}, ASKED], NAMES["red"], images=["pictures/red.png"]),
        line("Who is it?", NAMES["green"], images=["pictures/green.png"]),
    ]
    path = tmp_path / "data" / "train.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return path


def seen(command: Command, model: str, color: str, *flags: str) -> str:
    """Return the greedy answer to the question about an image."""
    image = f"data/pictures/{color}.png"
    done = command("run", model, "Who is it?", "--image", image, "--temperature", "0", *flags)
    assert done["status"] == "success", done
    return str(done["data"]["response"]).rpartition("</details>")[2].strip()


@pytest.mark.usefixtures("faces")
def test_images_are_learned_and_said_by_run_eval_and_the_fused_model(command: Command, mlxk: Program) -> None:
    done = mlxk("tune", "demo-vision", "data", "--into", "./taught", "--iters", "40", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    for color, name in NAMES.items():
        assert seen(command, "./taught", color) == name
    assert seen(command, "demo-vision", "red", "--adapter", "taught") == NAMES["red"]
    assert seen(command, "demo-vision", "red") != NAMES["red"]
    measured = command("eval", "./taught", "data")["data"]
    assert measured["exact_match"] == 1
    assert measured["loss"] < 0.2 < 2 < command("eval", "demo-vision", "data", "--limit", "1")["data"]["loss"]
    fused = command("fuse", "./taught", "--into", "./whole")["data"]
    assert fused["same_answers"] == 5
    assert seen(command, "./whole", "green") == NAMES["green"]
    assert command("run", "./taught", "Hello", "--temperature", "0")["status"] == "success"


@pytest.mark.usefixtures("faces")
def test_a_quantized_vision_model_is_trained_beside_its_weights(command: Command, mlxk_here: Program) -> None:
    assert command("convert", "demo-vision", "./small", "--quantize", "8")["status"] == "success"
    done = mlxk_here("tune", "./small", "data", "--into", "./taught", "--iters", "40", "--method", "dora", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    for color, name in NAMES.items():
        assert seen(command, "./taught", color) == name


def test_each_architecture_learns_and_continues_to_the_same_bits(faces: Path, tmp_path: Path) -> None:
    images = ExampleImages(FilesystemTrainingFiles(), PillowImageReader())
    check = FileCheck(faces.name).read(faces.read_bytes().splitlines(keepends=True))
    examples = tuple(each.beside(str(faces.parent)) for each in check.examples)
    settings = TuningSettings(steps=3, batch_size=2, layers=1, max_length=2048, learning_rate=1e-2, dropout=0.1)
    for architecture in tiny_vision.ARCHITECTURES:
        model = TrainedModel(tiny_vision.build(tmp_path / architecture, architecture), "mlx-vlm")
        tuner, folders = MlxModelTuner(images), [tmp_path / f"{architecture}-{kind}" for kind in ("whole", "parts")]
        job = TrainingJob(model, WeightForm.STORED, settings, examples, (), str(folders[0]), "a run", "base")
        for folder in folders:
            folder.mkdir()
        tuner.train(job, lambda point: None, lambda: False, resume=False)
        job = attrs.evolve(job, directory=str(folders[1]))
        with pytest.raises(ExecutionError):
            tuner.train(job, _breaking, lambda: False, resume=False)
        tuner.train(job, lambda point: None, lambda: False, resume=True)
        one, other = (folder.joinpath("adapters.safetensors").read_bytes() for folder in folders)
        assert one == other, architecture
        before, after = (tuner.loss(model, each, WeightForm.STORED, examples, 2048) for each in (None, str(folders[0])))
        assert after < before, architecture


def _breaking(point: TrainingPoint) -> None:
    if point.step == 2:
        raise ExecutionError("broken off")


def test_images_are_checked_by_file_and_line_before_anything_is_loaded(
    faces: Path, mlxk: Program, command: Command
) -> None:
    pictures = faces.parent / "pictures"
    (pictures / "text.png").write_text("no picture at all", encoding="utf-8")
    (pictures / "cut.png").write_bytes((pictures / "red.png").read_bytes()[:60])
    inline = "data:image/png;base64," + base64.b64encode((pictures / "blue.png").read_bytes()).decode()
    shown = (
        "pictures/none.png",
        "pictures/text.png",
        "pictures/cut.png",
        "pictures",
        "data:image/png;base64,%",
        "data:image/png,abc",
        inline,
    )
    lines = [line([{"type": "image_url", "image_url": {"url": each}}, ASKED], "x") for each in shown]
    faces.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    done = mlxk("tune", "demo-vision", "data", "--into", "./taught", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 1
    said = [each for each in done.stderr.splitlines() if not each.startswith("import time:")]
    place = "messages[0].content[0].image_url: the image"
    assert said[0] == f"train.jsonl:1: {place} '{faces.parent}/pictures/none.png': there is no such file"
    assert [each.partition(": ")[0] for each in said[:6]] == [f"train.jsonl:{number}" for number in range(1, 7)]
    assert said[4] == f"train.jsonl:5: {place} in the line: is not base64"
    assert said[5] == f"train.jsonl:6: {place} in the line: holds its content in another form than base64"
    imported = {each.rpartition("|")[2].strip().partition(".")[0] for each in done.stderr.splitlines()}
    assert not {"mlx", "mlx_lm", "mlx_vlm", "transformers"} & imported
    faults = command("tune", "demo-vision", "data", "--into", "./taught")["error"]["detail"]["faults"]
    assert [each["line"] for each in faults] == [1, 2, 3, 4, 5, 6]


def test_what_does_not_go_with_images_is_refused(faces: Path, command: Command, tmp_path: Path) -> None:
    tiny_models.build(tmp_path / "tiny")
    cut = ("--max-length", "9", "--no-mask-prompt")
    for words, message in (
        (("tune", "./tiny", "data", "--into", "./taught"), "the data has images, and 'tiny' reads text alone"),
        (("eval", "./tiny", "data"), "the data has images, and 'tiny' reads text alone"),
        (("tune", "demo-vision", "data", "--into", "./taught", *cut), "within the images"),
    ):
        assert message in command(*words)["error"]["message"], words
    assert not list(tmp_path.glob("*taught*"))


def test_another_image_of_the_same_name_is_another_training(faces: Path, mlxk_here: Program, tmp_path: Path) -> None:
    words = ("tune", "demo-vision", "data", "--iters", "1", "--json")
    digests = []
    for name in ("one", "other"):
        done = mlxk_here(*words, "--into", f"./{name}")
        digests.append(json.loads((tmp_path / name / "training.json").read_text(encoding="utf-8"))["data"]["digest"])
        assert done.returncode == 0, done.stdout
        Image.new("RGB", (64, 64), (9, 9, 9)).save(faces.parent / "pictures" / "red.png")
    assert digests[0] != digests[1]
