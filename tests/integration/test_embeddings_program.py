"""Embeddings at the command line and over HTTP: images in every shape, several vectors, prompts by name, lengths."""

import base64
import io
import json
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import this_process
from models.tiny_embedding import build_bert, build_qwen3
from models.tiny_picture_embedders import build_pictured
from PIL import Image
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx

TEXT = "a man is eating food"
LATE, SINGLE = "colqwen2_5", "qwen3_vl_embedding"
PROMPTS = {"query": "search: ", "STS": "similar: "}


def noise(seed: int) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PLAIN = base64.b64encode(noise(1)).decode()
URL = f"data:image/png;base64,{PLAIN}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for kind in (LATE, SINGLE):
        build_pictured(folder / "models" / kind, kind)
    build_bert(folder / "models" / "bert", matryoshka_dimensions=[8, 16])
    build_qwen3(folder / "models" / "qwen3-embedding")
    (folder / "models" / "bert" / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes(noise(number))
    (folder / "text.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def variables(home: Path) -> dict[str, str]:
    return {"MLXK_WORKSPACE_HOME": str(home / "models"), "MLXK2_ENABLE_ALPHA_FEATURES": "1"}


@pytest.fixture
def command(
    home: Path, variables: dict[str, str], program_environment: dict[str, str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a command in that folder."""

    def run(*arguments: str, standard_input: str = "") -> "subprocess.CompletedProcess[str]":
        return this_process.run(arguments, {**program_environment, **variables}, home, standard_input)

    return run


@pytest.fixture(scope="module")
def server(home: Path, variables: dict[str, str]) -> Iterator[RunningServer]:
    program: Any = WholeProgram(home, ServerSettings(), **variables)
    with RunningServer(program) as running:
        yield running


def records_of(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def asked(server: RunningServer, model: str, given: Any, **body: Any) -> Any:
    """Return the vectors of a request that succeeds."""
    status, _, answer = server.post("/v1/embeddings", {"model": model, "input": given, **body})
    assert status == 200, answer
    return [each["embedding"] for each in answer["data"]]


def test_images_and_a_text_beside_each_become_records(command: Callable[..., Any], server: RunningServer) -> None:
    first, second = records_of(command("embed", SINGLE, "--image", "1.png", "--image", "2.png"))
    assert (Path(first["image"]).name, Path(second["image"]).name) == ("1.png", "2.png")
    assert first.keys() == {"image", "embedding", "metadata"}
    assert first["embedding"] != second["embedding"]
    assert first["embedding"] == pytest.approx(asked(server, SINGLE, {"image": URL})[0], abs=1e-6)
    beside = records_of(command("embed", SINGLE, "a sheep", "--image", "1.png"))[0]
    assert beside["text"] == "a sheep"
    together = asked(server, SINGLE, {"image": URL, "text": "a sheep"})[0]
    assert beside["embedding"] == pytest.approx(together, abs=1e-6)
    assert beside["embedding"] != first["embedding"]


def test_several_vectors_of_one_input(command: Callable[..., Any], server: RunningServer) -> None:
    record = records_of(command("embed", LATE, TEXT, "--query"))[0]
    assert record["metadata"]["vectors"] == len(record["embedding"]) > 10
    assert record["metadata"]["dimensions"] == len(record["embedding"][0]) == 16
    document = records_of(command("embed", LATE, TEXT, "--document"))[0]
    assert document["metadata"]["vectors"] < record["metadata"]["vectors"] - 10
    numbers = asked(server, LATE, [TEXT, {"image": URL}], input_type="query")
    assert np.allclose(numbers[0], record["embedding"], atol=1e-6)
    packed = asked(server, LATE, [TEXT, {"image": URL}], input_type="query", encoding_format="base64")
    for plain, texts in zip(numbers, packed, strict=True):
        unpacked = [struct.unpack("<16f", base64.b64decode(each)) for each in texts]
        assert np.allclose(unpacked, plain, atol=1e-6)


SHAPES: dict[str, Any] = {
    "a data URL": URL,
    "Jina": {"image": URL},
    "Jina's plain base64": {"image": PLAIN},
    "an object with a URL": {"image": {"url": URL}},
    "a part of a conversation": {"type": "image_url", "image_url": {"url": URL}},
    "a part of the Responses API": {"type": "input_image", "image_url": URL},
    "mlx-vlm": {"type": "image", "image": URL},
    "a URL alone": {"url": URL},
    "Cohere": {"content": [{"type": "image_url", "image_url": {"url": URL}}]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_understood_in_every_shape(shape: str, server: RunningServer) -> None:
    expected = asked(server, SINGLE, [{"image": URL}, "a"])
    assert asked(server, SINGLE, [SHAPES[shape], {"text": "a"}]) == expected
    assert asked(server, SINGLE, SHAPES[shape]) == [pytest.approx(expected[0], abs=1e-6)]


def test_one_message_is_one_input(server: RunningServer) -> None:
    parts = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "a sheep"}]
    messages = [{"role": "user", "content": parts}]
    status, _, answer = server.post("/v1/embeddings", {"model": SINGLE, "messages": messages})
    assert status == 200
    assert answer["data"][0]["embedding"] == asked(server, SINGLE, {"image": URL, "text": "a sheep"})[0]
    status, _, answer = server.post(
        "/v1/embeddings", {"model": "bert", "messages": [{"role": "user", "content": TEXT}]}
    )
    assert answer["data"][0]["embedding"] == asked(server, "bert", TEXT)[0]


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "a text model": ({"model": "bert", "input": [{"image": URL}]}, 422, "takes no images"),
    "an address": ({"input": {"image": "https://example.org/a.png"}}, 400, "input.image"),
    "a path": ({"input": ["a", {"image_url": {"url": "/etc/passwd"}}]}, 400, "input[1].image_url.url"),
    "no image": (
        {"input": {"image": f"data:image/png;base64,{base64.b64encode(b'GIF').decode()}"}},
        400,
        "input.image",
    ),
    "a broken image": ({"input": {"image": f"{URL[:200]}="}}, 400, "input.image"),
    "nothing": ({"input": [{}]}, 400, "input[0]"),
    "a number": ({"input": [{"text": 3}]}, 400, "input[0].text"),
    "only a number": ({"input": 3}, 400, "input: must be a string, an image, an array of these, or tokens"),
    "a number among parts": ({"input": [{"content": ["a", 3]}]}, 400, "input[0].content[1]: must be a string, or an"),
    "a number for an image": ({"input": [{"image": {"url": 3}}]}, 400, "input[0].image.url: must be a data URL of an"),
    "two images": ({"input": [{"content": [{"image": URL}, {"image": URL}]}]}, 400, "takes one image (got 2)"),
    "neither": ({}, 400, "input"),
    "both": ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "exclude each other"),
    "two messages": ({"messages": [{"role": "user", "content": "a"}] * 2}, 400, "one message"),
    "another role": ({"messages": [{"role": "system", "content": "a"}]}, 400, "messages[0].role"),
    "too many": ({"input": [{"image": URL}] * 65}, 400, "at most 64 images"),
    "a text beside": ({"model": LATE, "input": {"image": URL, "text": "a"}}, 422, "without a text beside it"),
    "no such prompt": ({"model": "bert", "input": "a", "prompt_name": "sts"}, 422, "it has query, STS"),
    "two ways": (
        {"model": "bert", "input": "a", "prompt_name": "STS", "input_type": "query"},
        400,
        "exclude each other",
    ),
    "a length": ({"model": "bert", "input": "a", "dimensions": 12}, 400, "it was trained for 8, 16"),
    "too long": ({"model": "bert", "input": "a", "dimensions": 64}, 400, "cannot be made longer"),
    "no lengths": ({"model": LATE, "input": "a", "dimensions": 8}, 400, "no Matryoshka truncation"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_embedded_is_refused_by_its_field(case: str, server: RunningServer) -> None:
    body, expected, named = REFUSED[case]
    status, _, answer = server.post("/v1/embeddings", {"model": SINGLE, **body})
    assert (status, named in json.dumps(answer)) == (expected, True), answer


def test_prompts_by_name_and_by_kind(server: RunningServer, command: Callable[..., Any]) -> None:
    plain = asked(server, "bert", [TEXT, f"search: {TEXT}", f"similar: {TEXT}"])
    assert asked(server, "bert", TEXT, input_type="query") == [pytest.approx(plain[1], abs=1e-6)]
    for kind in ("document", "passage", "search_document"):
        assert asked(server, "bert", TEXT, input_type=kind) == [pytest.approx(plain[0], abs=1e-6)]
    assert asked(server, "bert", TEXT, input_type="search_query") == [pytest.approx(plain[1], abs=1e-6)]
    assert asked(server, "bert", TEXT, prompt_name="STS") == [pytest.approx(plain[2], abs=1e-6)]
    flags = {("--document",): 0, ("--query",): 1, ("--prompt-name", "STS"): 2}
    for flag, number in flags.items():
        found = records_of(command("embed", "bert", TEXT, *flag))[0]["embedding"]
        assert found == pytest.approx(plain[number], abs=1e-6)
    refused = command("embed", "bert", TEXT, "--prompt-name", "other")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--prompt-name: this model has no prompt 'other'; it has query, STS" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("bert", "--image", "1.png"), "takes no images"),
        ((SINGLE, "--image", "nowhere.png"), "Image not found: nowhere.png"),
        ((SINGLE, "--image", "text.txt"), "text.txt"),
        ((SINGLE, "--batch", "--image", "1.png"), "leave --image out"),
        (("bert", TEXT, "--query", "--document"), "not allowed with argument"),
        (("bert", TEXT, "--query", "--prompt-name", "STS"), "not allowed with argument"),
        (("bert", TEXT, "--dimensions", "12"), "it was trained for 8, 16"),
    ],
)
def test_what_the_command_cannot_embed_is_one_error(
    arguments: tuple[str, ...], fault: str, command: Callable[..., Any]
) -> None:
    done = command("embed", *arguments)
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert fault in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1.5e400"])
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_record_with_a_number_that_json_has_not_is_refused_by_its_line(
    number: str, flags: tuple[str, ...], command: Callable[..., Any]
) -> None:
    given = f'{{"text": "a", "id": 1.5}}\n{{"text": "b", "id": [{number}]}}\n'
    done = command("embed", "bert", "--batch", *flags, standard_input=given)
    assert done.returncode == 1
    assert f"Malformed JSONL on line 2: {number} is no number of JSON" in done.stderr + done.stdout


def test_a_vector_is_cut_to_a_length_that_the_model_was_trained_for(server: RunningServer) -> None:
    whole, cut = asked(server, "bert", TEXT)[0], asked(server, "bert", TEXT, dimensions=8)[0]
    head = np.array(whole[:8])
    assert np.allclose(cut, head / np.linalg.norm(head), atol=1e-6)


def test_what_models_embed_is_shown(server: RunningServer, command: Callable[..., Any]) -> None:
    shown = {
        name: json.loads(command("show", name, "--json").stdout)["data"]["model"]["capabilities"]
        for name in (LATE, SINGLE)
    }
    assert shown == {LATE: ["vision", "embeddings", "multi-vector"], SINGLE: ["vision", "embeddings"]}
    listed = command("list", "--all").stdout
    assert "embedding+vision+multi\n" in listed
    _, _, models = server.get("/v1/models")
    known = {each["id"]: each["capabilities"] for each in models["data"] if each["id"] in shown}
    assert known == shown


def test_apis_with_one_vector_an_input_refuse_several(server: RunningServer) -> None:
    status, _, answer = server.post("/api/embed", {"model": LATE, "input": "a"})
    assert (status, "several vectors" in json.dumps(answer)) == (400, True) or status == 422
