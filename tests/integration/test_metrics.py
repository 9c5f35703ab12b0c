"""What ``/metrics`` says of each model and API, and whether the Grafana dashboard asks for what is there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from models.tiny_embedding import build_bert
from models.tiny_rerankers import build_cross_encoder
from models.tiny_voices import build_qwen3_tts
from serving.forms import post_form
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "mlxk.json").read_text())
SOUND = ROOT / "tests" / "sounds" / "hello.flac"
MESSAGES = [{"role": "user", "content": "What is mlxk?"}]
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "n": 2}),
    "completions": ("/v1/completions", {"prompt": "What is"}),
    "responses": ("/v1/responses", {"input": "What is mlxk?", "max_output_tokens": 16}),
    "messages": ("/v1/messages", {"messages": MESSAGES}),
    "ollama": ("/api/chat", {"messages": MESSAGES, "stream": True, "options": {"num_predict": 4}}),
}
"""Requests for text, by API."""
ANSWERS = {api: 2 if api == "chat" else 1 for api in REQUESTS}
OF_ANSWERS = ("queue", "prefill", "time_to_first_token", "time_per_output_token", "answer")


class Sample(NamedTuple):
    """A line of the figures."""

    name: str
    labels: dict[str, str]
    value: float


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Return the figures of a server after a request for text through each API, for vectors, and for a transcript."""
    home = tmp_path_factory.mktemp("home")
    build_bert(home / "models" / "vectors")
    build_cross_encoder(home / "models" / "order", "bert")
    build_qwen3_tts(home / "models" / "voice")
    settings = ServerSettings(prefix_cache_dir=str(home / "kept"))
    program: Any = WholeProgram(home, settings, MLXK_WORKSPACE_HOME=str(home / "models"))
    with RunningServer(program) as server:
        for path, body in REQUESTS.values():
            limits = {} if path in ("/v1/responses", "/api/chat") else {"max_tokens": 4}
            status, _, answer = server.post(path, {"model": "demo", **limits, **body})
            assert status == 200, answer
        for path in ("/v1/embeddings", "/api/embed"):
            assert server.post(path, {"model": "vectors", "input": "Hello!"})[0] == 200
        assert server.post("/v1/rerank", {"model": "order", "query": "Hello!", "documents": ["Hi!"]})[0] == 200
        assert (
            server.post("/v1/audio/speech", {"model": "voice", "input": "Hello!", "response_format": "wav"})[0] == 200
        )
        form = [("model", "demo-speech"), ("file", ("hello.flac", SOUND.read_bytes()))]
        assert post_form(server, "/v1/audio/transcriptions", form)[0] == 200
        assert server.post("/v1/chat/completions", {"model": "no such", "messages": MESSAGES})[0] == 404
        return list(read(server.get("/metrics")[2].decode()))


def read(page: str) -> Iterator[Sample]:
    """Yield the samples of a page."""
    for line in page.splitlines():
        if not line.startswith("#"):
            name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()  # type: ignore[union-attr]
            yield Sample(name, dict(re.findall(r'(\w+)="([^"]*)"', labels or "")), float(value))


def by_use(samples: list[Sample], name: str) -> dict[tuple[str, str], float]:
    """Return the values of a metric by model and API."""
    return {(each.labels["model"], each.labels["api"]): each.value for each in samples if each.name == name}


def models_of(samples: list[Sample]) -> set[str]:
    """Return the names of models among the labels."""
    return {each.labels["model"] for each in samples if "model" in each.labels}


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_every_part_of_an_answer_is_measured_by_model_and_api(samples: list[Sample], name: str) -> None:
    counts = by_use(samples, f"mlxk_{name}_seconds_count")
    assert counts == {("demo", api): count for api, count in ANSWERS.items()}
    assert all(value >= 0 for value in by_use(samples, f"mlxk_{name}_seconds_sum").values())


def test_the_parts_of_an_answer_make_up_the_whole(samples: list[Sample]) -> None:
    sums = {name: by_use(samples, f"mlxk_{name}_seconds_sum")["demo", "messages"] for name in OF_ANSWERS}
    generated = sums["time_per_output_token"] * 3  # of four tokens
    assert sums["answer"] == pytest.approx(sums["time_to_first_token"] + generated, abs=1e-5)
    assert sums["prefill"] + sums["queue"] <= sums["time_to_first_token"] + 1e-5


def test_vectors_and_transcripts_are_measured_apart_from_answers(samples: list[Sample]) -> None:
    vectors = by_use(samples, "mlxk_embedding_seconds_count")
    assert vectors == {("vectors", "embeddings"): 1, ("vectors", "ollama"): 1}
    assert by_use(samples, "mlxk_rerank_seconds_count") == {("order", "rerank"): 1}
    assert by_use(samples, "mlxk_speech_seconds_count") == {("voice", "audio"): 1}
    assert by_use(samples, "mlxk_transcription_seconds_count") == {("demo-speech", "audio"): 1}


def test_tokens_are_counted_by_model_and_api(samples: list[Sample]) -> None:
    tokens = {tuple(each.labels.values()): each.value for each in samples if each.name == "mlxk_model_tokens_total"}
    assert tokens["demo", "messages", "generated"] == 4
    assert tokens["demo", "chat", "generated"] == 8
    assert tokens["vectors", "embeddings", "computed"] > 0
    whole = {each.name: each.value for each in samples if not each.labels}
    of_demo = {
        kind: sum(n for (model, _, of), n in tokens.items() if (model, of) == ("demo", kind))
        for kind in ("computed", "cached", "generated")
    }
    assert of_demo["computed"] + of_demo["cached"] == whole["mlxk_prompt_tokens_total"]
    assert of_demo["cached"] == whole["mlxk_cached_prompt_tokens_total"]
    assert of_demo["generated"] == whole["mlxk_completion_tokens_total"]


def test_a_model_that_does_not_exist_is_no_label(samples: list[Sample]) -> None:
    assert models_of(samples) == {"demo", "vectors", "order", "voice", "demo-speech"}


def test_models_in_memory_have_gauges(samples: list[Sample]) -> None:
    weights = {each.labels["model"]: each.value for each in samples if each.name == "mlxk_model_weight_bytes"}
    assert weights["demo"] > 100_000
    assert ("mlxk_model_tokens_per_second", {"model": "demo"}) in [each[:2] for each in samples]


def expressions() -> Iterator[tuple[str, str, str]]:
    """Yield title, expression and legend of every query of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def test_the_queries_of_the_dashboard_ask_for_what_is_there(samples: list[Sample]) -> None:
    of_server = {"instance"}  # added by Prometheus
    for title, expression, legend in expressions():
        asked = re.findall(r"(mlxk_\w+)\{([^}]*)\}", expression)
        assert len(asked) == expression.count("mlxk_") > 0, title
        known = set(of_server)
        for name, selector in asked:
            assert name in {each.name for each in samples}, title
            labels = {label for each in samples if each.name == name for label in each.labels} | of_server
            assert set(re.findall(r"(\w+)[=!]", selector)) <= labels, title
            known |= labels
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression))))
        assert grouped <= known, title
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= grouped, title


def test_the_choices_of_the_dashboard_are_labels_that_are_there(samples: list[Sample]) -> None:
    choices = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    expected = {"instance": {None}, "model": models_of(samples), "api": {*REQUESTS, "audio", "embeddings", "rerank"}}
    assert [each["name"] for each in choices] == list(expected)
    for each in choices:
        asked = each["query"]["query"].removeprefix("label_values(").removesuffix(f", {each['name']})")
        names = re.compile(asked.removeprefix('{__name__=~"').removesuffix('"}'))
        found = [sample for sample in samples if names.fullmatch(sample.name)]
        assert {sample.labels.get(each["name"]) for sample in found} == expected[each["name"]]


def test_every_measure_of_the_server_has_a_place_in_the_dashboard(samples: list[Sample]) -> None:
    shown = set(re.findall(r"mlxk_\w+", " ".join(expression for _, expression, _ in expressions())))
    names = {re.sub(r"_(bucket|sum|count)$", "", each.name) for each in samples}
    assert {name for name in names if not any(each.startswith(name) for each in shown)} == {
        "mlxk_blas",
        "mlxk_completion_tokens_total",  # mlxk_model_tokens_total has them by model
    }
