"""The OpenAPI document: valid, complete, of one mind with the program, and kept by answers to anything at all."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import attrs
import falcon.inspect
import pytest
from falcon.testing import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from serving import contract
from serving.parts import BASE_MODEL, CHAT_MODEL, Parts

from mlxk.domain.errors import all_error_types
from mlxk.entrypoints.http.openai.chat.request import UNSUPPORTED as CHAT_UNSUPPORTED
from mlxk.entrypoints.http.openai.chat.request import WITHOUT_EFFECT as CHAT_WITHOUT_EFFECT
from mlxk.entrypoints.http.openai.chat.request import ChatRequest
from mlxk.entrypoints.http.openai.completions import UNSUPPORTED as COMPLETION_UNSUPPORTED
from mlxk.entrypoints.http.openai.completions import CompletionRequest
from mlxk.entrypoints.http.openai.tokens import UNSUPPORTED as TOKENIZE_UNSUPPORTED
from mlxk.entrypoints.http.openai.tokens import DetokenizeRequest, TemplateRequest, TokenizeRequest
from mlxk.entrypoints.http.requests.validation import OneOf, Range
from mlxk.entrypoints.http.responses.request import UNSUPPORTED as RESPONSE_UNSUPPORTED
from mlxk.entrypoints.http.responses.request import WITHOUT_EFFECT as RESPONSE_WITHOUT_EFFECT
from mlxk.entrypoints.http.responses.request import ResponseRequest

WITHOUT_EFFECT = {"ChatRequest": CHAT_WITHOUT_EFFECT, "ResponseRequest": RESPONSE_WITHOUT_EFFECT}
REQUESTS = [
    ("ChatRequest", ChatRequest, CHAT_UNSUPPORTED),
    ("CompletionRequest", CompletionRequest, COMPLETION_UNSUPPORTED),
    ("ResponseRequest", ResponseRequest, RESPONSE_UNSUPPORTED),
]


@pytest.fixture(scope="module")
def parts() -> Iterator[Parts]:
    """Return one application; nothing it is asked does it harm."""
    parts = Parts()
    yield parts
    parts.close()


@pytest.fixture(scope="module")
def client(parts: Parts) -> TestClient:
    """Return a client of it."""
    return TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})


def schemas() -> dict[str, Any]:
    """Return the schemas of the contract."""
    found: dict[str, Any] = contract.document()["components"]["schemas"]
    return found


def references(value: Any) -> Iterator[str]:
    """Yield every reference below a value."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_schema_is_valid_and_every_reference_leads_somewhere() -> None:
    assert contract.document()["openapi"] == "3.1.0"
    for schema in schemas().values():
        Draft202012Validator.check_schema(schema)
    for reference in set(references(contract.document())):
        node = contract.document()
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    named = {reference.rpartition("/")[2] for reference in references(contract.document())}
    assert set(schemas()) - named == set()


def test_the_document_lists_exactly_the_addresses_there_are(parts: Parts) -> None:
    served = {
        (route.path.replace(":path", ""), method.method)
        for route in falcon.inspect.inspect_routes(parts.application.wsgi)
        for method in route.methods
        if not method.internal
    }
    documented = {
        (path, method.upper()) for path, methods in contract.document()["paths"].items() for method in methods
    }
    assert {each for each in served if each[1] != "HEAD"} == documented


def test_the_server_hands_out_the_document_itself(client: TestClient) -> None:
    assert client.simulate_get("/openapi.json").json == contract.document()
    assert "text/html" in client.simulate_get("/docs").headers["content-type"]


@pytest.mark.parametrize(("name", "kind", "unsupported"), REQUESTS)
def test_a_request_has_the_fields_the_program_reads(name: str, kind: type[Any], unsupported: dict[str, Any]) -> None:
    described = schemas()[name]
    fields = {field.name for field in attrs.fields(kind)} | set(unsupported)
    tolerated = {path for path in WITHOUT_EFFECT.get(name, ()) if path.isidentifier()}
    assert set(described["properties"]) == fields | tolerated
    required = {field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING}
    assert set(described["required"]) == required
    for field, rule in unsupported.items():
        assert described["properties"][field]["enum"] == [*rule.neutral, None]
    assert all("description" in rule for rule in described["properties"].values())


@pytest.mark.parametrize(
    ("name", "kind", "unsupported"),
    [
        ("TemplateRequest", TemplateRequest, TOKENIZE_UNSUPPORTED),
        ("TokenizeRequest", TokenizeRequest, TOKENIZE_UNSUPPORTED),
        ("DetokenizeRequest", DetokenizeRequest, {}),
    ],
)
def test_a_request_without_generation_has_a_chat_s_fields_and_its_own(
    name: str, kind: type[Any], unsupported: dict[str, Any]
) -> None:
    chat = {field.name for field in attrs.fields(ChatRequest)} | {*CHAT_UNSUPPORTED, *CHAT_WITHOUT_EFFECT}
    own = {field.name for field in attrs.fields(kind)} | set(unsupported)
    described = schemas()[name]["properties"]
    assert own - chat <= set(described) <= own
    assert all("description" in rule for rule in described.values())
    for field in set(unsupported) - chat:
        assert described[field]["enum"] == [*unsupported[field].neutral, None]


@pytest.mark.parametrize(("name", "kind", "unsupported"), REQUESTS)
def test_a_request_has_the_ranges_the_program_checks(name: str, kind: type[Any], unsupported: dict[str, Any]) -> None:
    for field, hint in get_type_hints(kind, include_extras=True).items():
        if field in unsupported:
            continue
        bounds = [mark for part in annotated(hint) for mark in part.__metadata__]
        properties = list(flattened(schemas()[name]["properties"][field]))
        for bound in bounds:
            assert any(agrees(bound, rule) for rule in properties), (field, bound)


def annotated(hint: Any) -> Iterator[Any]:
    """Yield the annotated types in a type."""
    if get_origin(hint) is Annotated:
        yield hint
    for part in get_args(hint):
        if part is not hint and not isinstance(part, (Range, OneOf)):
            yield from annotated(part)


def flattened(rule: Any) -> Iterator[Any]:
    """Yield a schema and every schema in it."""
    if isinstance(rule, dict):
        yield rule
        for each in rule.values():
            yield from flattened(each)
    elif isinstance(rule, list):
        for each in rule:
            yield from flattened(each)


def agrees(bound: Range | OneOf, rule: dict[str, Any]) -> bool:
    """Whether a schema says what a bound checks."""
    if isinstance(bound, OneOf):
        return set(bound.values) <= set(rule.get("enum", ()))
    low = {"minimum", "exclusiveMinimum"}
    for prefix in ("", "Length", "Items", "Properties"):
        least = rule.get(f"min{prefix or 'imum'}")
        most = rule.get(f"max{prefix or 'imum'}")
        if most == bound.high and (least == bound.low or (prefix and not bound.low and least is None)):
            return bool(set(rule) & low) or prefix != "" or bound.low is None
    return False


def test_every_error_the_server_answers_with_has_a_documented_status() -> None:
    from mlxk.entrypoints.http.errors import HTTP_STATUS

    generating = contract.document()["paths"]["/v1/chat/completions"]["post"]["responses"]
    commands_only = {error.code for error in all_error_types()} - set(HTTP_STATUS)
    assert commands_only == set()
    assert {"400", "404", "409", "413", "415", "422", "429", "500", "501", "503", "507"} <= set(generating)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
VALUES = {
    "model": st.sampled_from([CHAT_MODEL, BASE_MODEL, "chat", "no/such", "", "/etc/passwd", "a@b", "\x00"]),
    "messages": st.just([{"role": "user", "content": "one two"}]),
    "prompt": st.sampled_from(["a b", ["a", "b"], [1], [], None]),
    "stream": st.booleans(),
    "n": st.integers(-1, 3),
}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_is_sent_the_answer_keeps_the_contract(client: TestClient, data: st.DataObject) -> None:
    path, kind, unsupported = data.draw(
        st.sampled_from(
            [
                ("/v1/chat/completions", ChatRequest, CHAT_UNSUPPORTED),
                ("/v1/completions", CompletionRequest, COMPLETION_UNSUPPORTED),
                ("/tokenize", TokenizeRequest, TOKENIZE_UNSUPPORTED),
                ("/v1/apply-template", TemplateRequest, TOKENIZE_UNSUPPORTED),
                ("/v1/detokenize", DetokenizeRequest, {}),
                ("/v1/responses", ResponseRequest, RESPONSE_UNSUPPORTED),
            ]
        )
    )
    names = sorted({field.name for field in attrs.fields(kind)} | set(unsupported))
    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "tokens": [1]}
    if path == "/v1/responses":
        del body["prompt"]
    if path == "/tokenize":
        del body["messages" if data.draw(st.booleans()) else "prompt"]
    for name in data.draw(st.lists(st.sampled_from(names), max_size=4)):
        body[name] = data.draw(VALUES.get(name, JSON) | JSON)
    answer = client.simulate_post(path, body=json.dumps(body))
    assert answer.status_code < 500
    kept = answer.headers["content-type"].partition(";")[0]
    if kept == "text/event-stream":
        for line in answer.text.split("\n"):
            if line.startswith("data: ") and line != "data: [DONE]":
                contract.check_event(json.loads(line[6:]))
        assert answer.text.endswith("data: [DONE]\n\n") or path == "/v1/responses"
    else:
        contract.check("POST", path, answer.status_code, kept, answer.json)


TOKEN_PATHS = ["/tokenize", "/v1/detokenize", "/apply-template"]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=200),
    st.sampled_from(["/v1/chat/completions", "/v1/completions", "/responses", "/v1/unload", *TOKEN_PATHS]),
)
def test_no_body_makes_the_server_fail(client: TestClient, body: bytes, path: str) -> None:
    answer = client.simulate_post(path, body=body)
    assert answer.status_code < 500
    contract.check("POST", path, answer.status_code, "application/json", answer.json)
