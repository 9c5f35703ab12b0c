"""Reranking at the command line and over HTTP: sources of documents, forms of requests, and refusals."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import this_process
from doubles.event_log import InMemoryEventLog
from models.tiny_rerankers import DOCUMENTS, QUERY, WINDOW, build_answering, build_cross_encoder
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.adapters.mlx.reranking.reranker import MlxDocumentReranker
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.reranking import RerankRequest, ranked
from mlxk.entrypoints.http.openai.rerank import PATHS
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def reranker() -> Iterator[MlxDocumentReranker]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield MlxDocumentReranker(generator.leases)
    generator.close()


PASSAGES = "\n".join(DOCUMENTS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cross-encoder, a decoder, and documents."""
    folder = tmp_path_factory.mktemp("home")
    build_cross_encoder(folder / "models" / "cross", "bert")
    build_answering(folder / "models" / "qwen3-reranker")
    (folder / "passages.txt").write_text(f"{PASSAGES}\n\n")
    (folder / "odd.txt").write_bytes("a\x0cb\u2028c\x85d\x1ce\r\nsecond\rthird\n\n".encode())
    (folder / "passages.jsonl").write_text("".join(json.dumps({"text": each, "id": 7}) + "\n" for each in DOCUMENTS))
    return folder


@pytest.fixture
def rerank(home: Path, program_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``mlxk rerank`` in that folder."""

    def run(*arguments: str, standard_input: str = "") -> "subprocess.CompletedProcess[str]":
        environment = {**program_environment, "MLXK_WORKSPACE_HOME": str(home / "models")}
        return this_process.run(("rerank", *arguments), environment, home, standard_input)

    return run


def test_the_lines_of_a_file_are_printed_by_relevance(
    rerank: Callable[..., Any], reranker: MlxDocumentReranker, home: Path
) -> None:
    done = rerank("cross", QUERY, "passages.txt")
    assert (done.returncode, done.stderr) == (0, "")
    model = ModelHandle("cross", str(home / "models" / "cross"), Origin.WORKSPACE)
    order = ranked(reranker.rerank(RerankRequest(model, QUERY, DOCUMENTS)).documents)
    assert done.stdout.splitlines() == [
        f"{each.score:.4f}  {each.index + 1}  {DOCUMENTS[each.index]}" for each in order
    ]


@pytest.mark.parametrize(
    ("arguments", "standard_input"),
    [
        (("passages.jsonl",), ""),
        (("-",), PASSAGES),
        (("-",), f"\ufeff{PASSAGES}"),
        (("-", "--jsonl"), "".join(json.dumps({"text": each}) + "\n" for each in DOCUMENTS)),
    ],
    ids=["jsonl", "standard input", "a byte-order mark", "jsonl on standard input"],
)
def test_every_source_of_documents_gives_the_same_order(
    arguments: tuple[str, ...], standard_input: str, rerank: Callable[..., Any]
) -> None:
    expected = json.loads(rerank("cross", QUERY, "passages.txt", "--json").stdout)["data"]
    found = json.loads(rerank("cross", QUERY, *arguments, "--json", standard_input=standard_input).stdout)["data"]
    assert found == expected
    assert [each["document"] for each in found["results"]] == [DOCUMENTS[each["index"]] for each in found["results"]]


def test_only_line_breaks_end_a_document(rerank: Callable[..., Any], home: Path) -> None:
    whole = {"a\x0cb\u2028c\x85d\x1ce", "second", "third"}
    for arguments, given in ((("odd.txt",), ""), (("-",), (home / "odd.txt").read_bytes().decode())):
        found = json.loads(rerank("cross", QUERY, *arguments, "--json", standard_input=given).stdout)["data"]
        assert {each["document"] for each in found["results"]} == whole


def test_a_number_of_documents_and_a_limit_of_tokens(rerank: Callable[..., Any]) -> None:
    done = rerank("cross", QUERY, "passages.txt", "-n", "2", "--max-tokens-per-doc", "3")
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.splitlines() == [
        "[document 2 was truncated: 3 of its 6 tokens count]",
        "[document 3 was truncated: 3 of its 19 tokens count]",
    ]


def test_an_instruction_changes_the_scores_of_a_decoder(rerank: Callable[..., Any]) -> None:
    plain = json.loads(rerank("qwen3-reranker", QUERY, "passages.txt", "--json").stdout)["data"]
    told = json.loads(rerank("qwen3-reranker", QUERY, "passages.txt", "--instruction", "Find prey.", "--json").stdout)
    assert plain["results"] != told["data"]["results"]


REFUSALS = {
    "no file": (("cross", QUERY, "nowhere.txt"), "'nowhere.txt' cannot be read"),
    "a folder": (("cross", QUERY, "models"), "'models'"),
    "no documents": (("cross", QUERY, "-"), "standard input is empty"),
    "no documents in JSONL": (("cross", QUERY, "-", "--jsonl"), "There are no documents: standard input is empty."),
    "an empty query": (("cross", " ", "passages.txt"), "query is empty"),
    "no object": (("cross", QUERY, "passages.txt", "--jsonl"), "line 1"),
    "none of the best": (("cross", QUERY, "passages.txt", "-n", "0"), "--top-n must be at least 1"),
    "no token": (("cross", QUERY, "passages.txt", "--max-tokens-per-doc", "0"), "max_tokens"),
    "an instruction": (("cross", QUERY, "passages.txt", "--instruction", "x"), "takes no instruction"),
    "a model of text": (("demo", QUERY, "passages.txt"), "'demo' is not a reranker"),
    "a window": (("cross", QUERY * 20, "passages.txt", "--no-truncate"), "query has too many tokens"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_compared_is_refused_in_one_line(case: str, rerank: Callable[..., Any]) -> None:
    arguments, message = REFUSALS[case]
    done = rerank(*arguments, standard_input="")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_reranker_that_is_asked_for_text_says_what_it_does(home: Path, program_environment: dict[str, str]) -> None:
    environment = {**program_environment, "MLXK_WORKSPACE_HOME": str(home / "models")}
    command = [sys.executable, "-m", "mlxk", "run", "qwen3-reranker", "Hello", "--no-server"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "mlxk rerank" in done.stderr


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[RunningServer]:
    program: Any = WholeProgram(home, ServerSettings(), MLXK_WORKSPACE_HOME=str(home / "models"))
    with RunningServer(program) as running:
        yield running


def asked(server: RunningServer, path: str = "/v1/rerank", **body: Any) -> tuple[int, dict[str, str], Any]:
    """Return the answer to a request."""
    status, headers, answer = server.post(path, {"model": "cross", "query": QUERY, "documents": DOCUMENTS, **body})
    return status, headers, answer


def test_every_path_answers_alike_but_for_the_version_of_its_api(server: RunningServer) -> None:
    answers = {path: asked(server, path) for path in PATHS}
    assert {status for status, _, _ in answers.values()} == {200}
    first = answers["/v1/rerank"][2]["results"]
    assert all(answer["results"] == first for _, _, answer in answers.values())
    assert {path: answer["meta"]["api_version"]["version"] for path, (_, _, answer) in answers.items()} == {
        path: "2" if path.startswith("/v2") else "1" for path in PATHS
    }


def test_the_answer_is_ordered_and_counted(server: RunningServer, reranker: MlxDocumentReranker, home: Path) -> None:
    _, _, answer = asked(server)
    model = ModelHandle("cross", str(home / "models" / "cross"), Origin.WORKSPACE)
    found = reranker.rerank(RerankRequest(model, QUERY, DOCUMENTS))
    assert [each["index"] for each in answer["results"]] == [each.index for each in ranked(found.documents)]
    scores = {each.index: each.score for each in found.documents}
    assert {each["index"]: each["relevance_score"] for each in answer["results"]} == pytest.approx(scores, abs=1e-6)
    assert answer["usage"] == {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert all(each.keys() == {"index", "relevance_score"} for each in answer["results"])


def test_documents_come_back_as_they_were_sent(server: RunningServer) -> None:
    documents = ["bread", {"text": "a cheetah", "title": "prey"}]
    _, _, answer = asked(server, documents=documents, return_documents=True, top_n=5)
    assert {each["index"]: each["document"] for each in answer["results"]} == {0: {"text": "bread"}, 1: documents[1]}


def test_top_n_takes_the_first_of_the_order(server: RunningServer) -> None:
    assert asked(server, top_n=2)[2]["results"] == asked(server)[2]["results"][:2]


def test_the_names_of_other_servers_mean_the_same(server: RunningServer) -> None:
    _, headers, answer = asked(server, top_k=2)
    assert answer["results"] == asked(server, top_n=2)[2]["results"]
    assert "x-mlxk-ignored-fields" not in headers
    assert asked(server, top_k=1, top_n=2)[2]["results"] == answer["results"]
    status, _, refused = asked(server, documents=["bread " * 600], truncation=False)
    assert (status, refused["error"]["param"]) == (400, "documents[0]"), refused
    assert "documents[0] resulted in" in refused["error"]["message"]
    assert asked(server, documents=["bread " * 600], truncation=True)[0] == 200


def test_a_document_in_parts_of_text_is_their_text(server: RunningServer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "cheetah"}]
    _, _, plain = asked(server, documents=["a\ncheetah", "bread"])
    _, _, divided = asked(server, documents=[{"content": parts}, {"content": "bread"}])
    assert divided["results"] == plain["results"]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    status, _, refused = asked(server, documents=[{"content": [*parts, image]}])
    assert (status, refused["error"]["param"]) == (422, "documents[0]")


def test_an_image_as_a_string_is_refused_by_a_model_that_reads_texts(server: RunningServer) -> None:
    url = "data:image/png;base64,AAAA"
    for body, field in (({"documents": ["bread", url]}, "documents[1]"), ({"query": url}, "query")):
        status, _, refused = asked(server, **body)
        assert (status, refused["error"]["param"]) == (422, field), refused


def test_what_was_truncated_is_said(server: RunningServer) -> None:
    status, headers, answer = asked(server, documents=["bread", "food " * 3 * WINDOW])
    assert status == 200
    assert headers["x-mlxk-adaptations"] == "inputs-truncated"
    assert [(each["index"], each["tokens"]) for each in answer["truncated"]] == [(1, 3 * WINDOW)]
    status, _, answer = asked(server, documents=["bread", "food " * 3 * WINDOW], truncate=False)
    assert (status, answer["error"]["type"]) == (400, "context_length_exceeded")


def test_a_limit_of_tokens_per_document(server: RunningServer) -> None:
    _, _, answer = asked(server, max_tokens_per_doc=2)
    assert {each["kept"] for each in answer["truncated"]} == {2}


def test_the_short_form_of_a_request_gets_the_short_form_of_an_answer(server: RunningServer) -> None:
    status, _, answer = asked(server, "/rerank", documents=None, texts=list(DOCUMENTS), return_text=True)
    assert status == 200
    expected = asked(server)[2]["results"]
    assert [(each["index"], each["score"]) for each in answer] == [
        (each["index"], each["relevance_score"]) for each in expected
    ]
    assert all(each["text"] == DOCUMENTS[each["index"]] for each in answer)
    _, _, raw = asked(server, "/rerank", documents=None, texts=list(DOCUMENTS), raw_scores=True)
    assert [each["index"] for each in raw] == [each["index"] for each in answer]
    assert any(not 0 <= each["score"] <= 1 for each in raw)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"documents": []}, 400, "documents"),
        ({"documents": None}, 400, "documents"),
        ({"texts": ["a"]}, 400, "documents"),
        ({"documents": ["a", 3]}, 400, "documents[1]"),
        ({"documents": [{"title": "a"}]}, 400, "documents[0]"),
        ({"documents": "bread"}, 400, "documents"),
        ({"query": ""}, 400, "query"),
        ({"query": " \n"}, 400, "query: is empty"),
        ({"top_k": 0}, 400, "top_k: must be at least 1"),
        ({"query": ["a"]}, 400, "query"),
        ({"top_n": 0}, 400, "top_n"),
        ({"top_n": True}, 400, "top_n"),
        ({"max_tokens_per_doc": -1}, 400, "max_tokens_per_doc"),
        ({"truncation_direction": "left"}, 400, "truncation_direction"),
        ({"rank_fields": ["title"]}, 400, "rank_fields"),
        ({"instruction": "Find bread."}, 422, "instruction"),
        ({"query": QUERY * 20}, 400, "query"),
        ({"model": "demo"}, 422, "'demo' is not a reranker"),
        ({"model": "nothing"}, 404, "nothing"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_answered_names_its_field(
    body: dict[str, Any], status: int, named: str, server: RunningServer
) -> None:
    found, _, answer = asked(server, **body)
    assert (found, named in answer["error"]["message"] + (answer["error"]["param"] or "")) == (status, True), answer


def test_a_reranker_that_is_asked_for_a_chat_says_where_to_ask_it(server: RunningServer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    status, _, answer = server.post("/v1/chat/completions", {"model": "qwen3-reranker", "messages": messages})
    assert status == 422
    assert "/v1/rerank" in answer["error"]["hint"]


def test_a_reranker_is_listed_with_what_it_does(server: RunningServer) -> None:
    listed = server.get("/v1/models")[2]["data"]
    capabilities = {each["id"].rpartition("/")[2]: each.get("capabilities") for each in listed}
    assert capabilities["cross"] == capabilities["qwen3-reranker"] == ["rerank"]


def test_requests_are_measured(server: RunningServer) -> None:
    asked(server)
    page = server.get("/metrics")[2].decode()
    assert re.search(r'mlxk_rerank_seconds_count\{model="[^"]*cross",api="rerank"\} [1-9]', page)
