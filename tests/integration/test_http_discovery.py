"""What clients ask first: the root, the index, the listing for both readers, paths without a prefix, other names."""

from collections.abc import Iterator
from typing import Any

import pytest
from serving.parts import CHAT, CHAT_MODEL, EMBEDDING_MODEL, OTHER_MODEL, Parts
from serving.running import RunningServer

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.settings import ServerSettings

HI = {"messages": [{"role": "user", "content": "hi there"}]}
ANTHROPIC = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def served() -> Iterator[RunningServer]:
    """Return a server with two aliases and a default model."""
    parts = Parts(settings=ServerSettings(page=False))
    aliases = [("gpt-4o-mini", CHAT_MODEL), ("openai/gpt-4o", OTHER_MODEL)]
    parts.catalogue.offer_all(None, aliases, CHAT_MODEL)
    with RunningServer(parts) as running:
        yield running


def ask(served: RunningServer, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    return served.get(path, **headers) if body is None else served.post(path, body, **headers)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_root_says_that_the_server_is_up(served: RunningServer, method: str) -> None:
    status, headers, body = served.request(method, "/")
    assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert body == (b"Ollama is running" if method == "GET" else b"")


def test_a_browser_is_led_to_the_description_where_there_is_no_chat_page(served: RunningServer) -> None:
    status, headers, _ = ask(served, "/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (status, headers["location"]) == (302, "/docs")


def test_the_index_says_where_to_find_what(served: RunningServer) -> None:
    status, _, body = ask(served, "/v1")
    assert status == 200
    assert ask(served, body["models"])[0] == ask(served, body["openapi"])[0] == ask(served, body["docs"])[0] == 200


@pytest.mark.parametrize("path", ["/chat/completions", "/generate"])
def test_a_chat_is_answered_without_the_prefix(served: RunningServer, path: str) -> None:
    status, _, body = ask(served, path, {"model": CHAT_MODEL, **HI})
    assert (status, body["choices"][0]["message"]["content"]) == (200, "hi there")


def test_the_other_addresses_exist_without_the_prefix(served: RunningServer) -> None:
    assert ask(served, "/completions", {"model": CHAT_MODEL, "prompt": "a b"})[2]["choices"][0]["text"] == "a b"
    assert ask(served, "/embeddings", {"model": EMBEDDING_MODEL, "input": "a"})[2]["object"] == "list"
    assert ask(served, "/models")[2] == ask(served, "/v1/models")[2]
    assert ask(served, f"/models/{CHAT_MODEL}")[2] == ask(served, f"/v1/models/{CHAT_MODEL}")[2]
    assert ask(served, "/v1/metrics")[0] == 200
    assert ask(served, "/unload", {})[2]["object"] == "list"


def test_readers_of_the_other_form_get_theirs(served: RunningServer) -> None:
    names = [each["id"] for each in ask(served, "/v1/models")[2]["data"]]
    status, headers, body = ask(served, "/v1/models", **ANTHROPIC)
    assert (status, headers["vary"]) == (200, "Anthropic-Version, Origin")
    assert [each["id"] for each in body["data"]] == names
    assert (body["first_id"], body["last_id"], body["has_more"]) == (names[0], names[-1], False)
    assert ask(served, f"/v1/models/{CHAT_MODEL}", **ANTHROPIC)[2]["type"] == "model"
    seen: list[str] = []
    query = "?limit=2"
    while True:
        page = ask(served, f"/v1/models{query}", **ANTHROPIC)[2]
        seen += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
        query = f"?limit=2&after_id={page['last_id']}"
    assert seen == names
    before = ask(served, f"/v1/models?limit=2&before_id={names[3]}", **ANTHROPIC)[2]
    assert ([each["id"] for each in before["data"]], before["has_more"]) == (names[1:3], True)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", f"limit={'9' * 5000}", "limit=%EF%BC%91", "limit=x", "after_id=nobody"]
)
def test_a_page_that_there_is_not_is_refused_by_name(served: RunningServer, query: str) -> None:
    status, _, body = ask(served, f"/v1/models?{query}", **ANTHROPIC)
    assert (status, body["error"]["message"].partition(":")[0]) == (400, query.partition("=")[0])


@pytest.mark.parametrize("name", ["gpt-4o-mini", "gpt-4o-mini:latest", "openai/gpt-4o"])
def test_an_alias_is_a_model_of_its_own(served: RunningServer, name: str) -> None:
    status, _, body = ask(served, "/v1/chat/completions", {"model": name, **HI})
    assert (status, body["model"]) == (200, name)
    listed = {each["id"]: each.get("alias_of") for each in ask(served, "/v1/models")[2]["data"]}
    meant = OTHER_MODEL if "/" in name else CHAT_MODEL
    assert listed[name.removesuffix(":latest")] == meant
    assert served.parts.generator.requests[-1].model.name == meant
    assert ask(served, "/v1/unload", {"model": name})[2]["data"] == [meant]


@pytest.mark.parametrize("name", ["claude-sonnet-4-5", "nobody/has-this", "o1@2024", None])
def test_the_default_model_answers_to_names_that_nobody_has_and_says_who_it_is(
    served: RunningServer, name: str | None
) -> None:
    body = HI if name is None else {"model": name, **HI}
    status, _, answer = ask(served, "/v1/chat/completions", body)
    assert (status, answer["model"]) == (200, CHAT_MODEL)


@pytest.mark.parametrize("fields", [{"raw": True}, {}])
def test_a_text_of_another_api_without_a_model_is_for_the_default_model(
    served: RunningServer, fields: dict[str, bool]
) -> None:
    status, _, answer = ask(served, "/api/generate", {"prompt": "one two", "stream": False, **fields})
    assert (status, answer["response"]) == (200, "one two")


def test_the_default_model_does_nothing_that_it_cannot(served: RunningServer) -> None:
    ask(served, "/v1/chat/completions", HI)
    assert ask(served, "/v1/unload", {"model": "nobody/has-this"})[0] == 400, "another model than was named is unloaded"
    assert ask(served, "/v1/unload", {"model": CHAT_MODEL})[2]["data"] == [CHAT_MODEL]
    status, _, body = ask(served, "/v1/embeddings", {"model": "text-embedding-3-small", "input": "a"})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "text-embedding-3-small" in body["error"]["message"]
    assert ask(served, "/v1/chat/completions", {"model": "./here", **HI})[0] == 400


@pytest.mark.parametrize("alias", ["demo", "./x", "/x", "~/x", CHAT_MODEL, " x", "a\nb"])
def test_an_alias_never_hides_what_has_a_name(alias: str) -> None:
    parts = Parts()
    with pytest.raises(ValidationError, match="cannot be an alias"):
        parts.catalogue.add_alias(alias, OTHER_MODEL)
    parts.close()


def test_a_model_that_comes_later_is_not_hidden() -> None:
    parts = Parts(models={"org/later": CHAT})
    later = parts.cache.models.pop("org/later")
    parts.catalogue.add_alias("org/later", OTHER_MODEL)
    assert parts.catalogue.find("org/later:latest").id == OTHER_MODEL
    parts.cache.models["org/later"] = later
    assert parts.catalogue.find("org/later").id == "org/later"
    parts.close()
