"""The contract of the Messages API: of one mind with the program, and kept by answers to anything at all."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import attrs
import pytest
from falcon.testing import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import contract
from serving.messages import frames, put_together
from serving.parts import BASE_MODEL, CHAT_MODEL, EMBEDDING_MODEL, SPEECH_MODEL, Parts

from mlxk.entrypoints.http.anthropic import blocks
from mlxk.entrypoints.http.anthropic.request import (
    UNSUPPORTED,
    WITHOUT_EFFECT,
    AnthropicBuiltInTool,
    AnthropicMessage,
    CountRequest,
    MessagesRequest,
    ToolDefinition,
)
from mlxk.entrypoints.http.requests.validation import OneOf, Range

SCHEMAS: dict[str, Any] = contract.document()["components"]["schemas"]
REQUESTS = [("MessagesRequest", MessagesRequest), ("MessagesCountRequest", CountRequest)]
PATHS = {MessagesRequest: "/v1/messages", CountRequest: "/v1/messages/count_tokens"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """Return a client of an application; nothing it is asked does it harm."""
    parts = Parts()
    yield TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    parts.close()


@pytest.mark.parametrize(("name", "kind"), REQUESTS)
def test_a_request_has_the_fields_the_program_reads(name: str, kind: type[Any]) -> None:
    described = SCHEMAS[name]
    assert set(described["properties"]) == {field.name for field in attrs.fields(kind)} | set(UNSUPPORTED)
    required = {field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING}
    assert set(described["required"]) == required
    for field, rule in UNSUPPORTED.items():
        assert described["properties"][field]["enum"] == [*rule.neutral, None]
        assert rule.reason in described["properties"][field]["description"]
    assert all("description" in rule for rule in described["properties"].values())


@pytest.mark.parametrize(("name", "kind"), REQUESTS)
def test_a_request_has_the_ranges_the_program_checks(name: str, kind: type[Any]) -> None:
    for field, hint in get_type_hints(kind, include_extras=True).items():
        described = json.dumps(SCHEMAS[name]["properties"][field])
        for bound in bounds(hint):
            if isinstance(bound, OneOf):
                assert all(json.dumps(value) in described for value in bound.values), field
            else:
                assert all(not each or f": {each:g}" in described for each in (bound.low, bound.high)), field


def bounds(hint: Any) -> Iterator[Range | OneOf]:
    """Yield the bounds in a type."""
    if get_origin(hint) is Annotated:
        yield from (mark for mark in hint.__metadata__ if isinstance(mark, Range | OneOf))
    for part in get_args(hint):
        if not isinstance(part, Range | OneOf):
            yield from bounds(part)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MessagesTextBlock", blocks.TextBlock),
        ("MessagesDocumentBlock", blocks.DocumentBlock),
        ("MessagesSearchResultBlock", blocks.SearchResultBlock),
        ("MessagesThinkingBlock", blocks.ThinkingBlock),
        ("MessagesCompactionBlock", blocks.CompactionBlock),
        ("MessagesToolUseBlock", blocks.ToolUseBlock),
        ("MessagesToolResultBlock", blocks.ToolResultBlock),
        ("MessagesToolReferenceBlock", blocks.ToolReferenceBlock),
        ("MessagesMessage", AnthropicMessage),
        ("MessagesTool", ToolDefinition),
        ("MessagesBuiltInTool", AnthropicBuiltInTool),
    ],
)
def test_a_part_of_a_request_has_the_fields_the_program_reads(name: str, kind: type[Any]) -> None:
    assert set(SCHEMAS[name]["properties"]) == {field.name for field in attrs.fields(kind)}
    required = {field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING}
    assert set(SCHEMAS[name]["required"]) - {"type"} == required - {"type"}


def test_the_blocks_that_are_left_out_are_listed() -> None:
    listed, ending = SCHEMAS["MessagesSkippedBlock"]["properties"]["type"]["anyOf"]
    assert set(listed["enum"]) == blocks.SKIPPED
    assert ending["pattern"] == f".+{blocks.SERVER_RESULT}$"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(max_size=8)
KINDS = [*blocks.BLOCKS, *sorted(blocks.SKIPPED), "web_search_tool_result", "tool_reference", "container_upload", "x"]
SOURCES = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "url", "file", "text", "content"])},
    optional={"data": TEXT, "media_type": st.sampled_from(["image/png", "text/plain"]), "url": TEXT, "content": JSON},
)
FIELDS: dict[str, Any] = {
    "text": TEXT,
    "thinking": TEXT,
    "signature": TEXT | st.none(),
    "id": TEXT,
    "name": TEXT,
    "input": JSON,
    "tool_use_id": TEXT,
    "source": SOURCES | TEXT,
    "title": TEXT,
    "tool_name": TEXT,
    "is_error": st.booleans(),
    "cache_control": JSON,
}
BLOCK = st.recursive(
    st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional=FIELDS),
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["tool_result", "search_result"]), "content": st.lists(inner, max_size=3) | TEXT},
        optional=FIELDS,
    ),
    max_leaves=4,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"])},
    optional={"content": TEXT | st.lists(BLOCK, max_size=3) | JSON, "clear_at": st.sampled_from(["never", None, "x"])},
)
TOOL = st.fixed_dictionaries(
    {},
    optional={"name": TEXT, "input_schema": st.just({"type": "object"}) | JSON, "type": TEXT | st.none()},
)
VALUES: dict[str, Any] = {
    "model": st.sampled_from([CHAT_MODEL, BASE_MODEL, SPEECH_MODEL, EMBEDDING_MODEL, "no/such", "", "/etc/passwd"]),
    "messages": st.lists(MESSAGE, max_size=4),
    "system": TEXT | st.lists(BLOCK, max_size=2),
    "stream": st.booleans(),
    "max_tokens": st.integers(-1, 3),
    "tools": st.lists(TOOL, max_size=2),
    "tool_choice": st.fixed_dictionaries(
        {"type": st.sampled_from(["auto", "any", "tool", "none", "x"])}, optional={"name": TEXT}
    ),
    "thinking": st.fixed_dictionaries(
        {"type": st.sampled_from(["enabled", "disabled", "adaptive", "between_tools", "x"])},
        optional={"budget_tokens": st.integers(-1, 9), "display": st.sampled_from(["omitted", "summarized", "x"])},
    ),
    "output_config": st.fixed_dictionaries(
        {}, optional={"effort": st.sampled_from(["low", "max", "x"]), "format": JSON}
    ),
}


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_is_sent_the_answer_keeps_the_contract(client: TestClient, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([MessagesRequest, CountRequest]))
    names = sorted({field.name for field in attrs.fields(kind)} | set(UNSUPPORTED) | set(WITHOUT_EFFECT))
    body: dict[str, Any] = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    for name in data.draw(st.lists(st.sampled_from(names), max_size=4)):
        body[name] = data.draw(VALUES.get(name, JSON) | JSON if data.draw(st.booleans()) else VALUES.get(name, JSON))
    answer = client.simulate_post(PATHS[kind], body=json.dumps(body))
    assert answer.status_code < 500
    kept = answer.headers["content-type"].partition(";")[0]
    if kept == "text/event-stream":
        put_together(frames(answer.content))
    else:
        contract.check("POST", PATHS[kind], answer.status_code, kept, answer.json)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.sampled_from(sorted(PATHS.values())))
def test_no_body_makes_the_server_fail(client: TestClient, body: bytes, path: str) -> None:
    answer = client.simulate_post(path, body=body)
    assert answer.status_code < 500
    contract.check("POST", path, answer.status_code, "application/json", answer.json)
