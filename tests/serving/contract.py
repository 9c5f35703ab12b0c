"""The OpenAPI document as a check: what is wrong with an answer, by the contract."""

import functools
import re
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from mlxk.entrypoints.http.resources import openapi_document

EVERYWHERE = {400, 404, 405, 408, 413, 415, 431, 501, 505, 507}
"""Statuses that any address may answer with, about the request as HTTP; their body is the error of its API."""

ERRORS = {"/v1/messages": "MessagesError", "/api/": "OllamaError"}
"""Schemas of the errors of an API, by how its addresses begin; others have the common error."""


@functools.cache
def document() -> dict[str, Any]:
    """Return the contract."""
    return openapi_document()


@functools.cache
def registry() -> Registry[Any]:
    """Return where references of the contract lead."""
    resource = Resource.from_contents(document(), default_specification=DRAFT202012)
    return Registry().with_resource("urn:openapi", resource)


@functools.cache
def validator(pointer: str) -> Draft202012Validator:
    """Return the check of one schema of the contract."""
    return Draft202012Validator({"$ref": f"urn:openapi#{pointer}"}, registry=registry())


def faults(pointer: str, value: Any) -> list[str]:
    """Return what is wrong with a value by a schema of the contract."""
    found = []
    for fault in validator(pointer).iter_errors(value):
        cause = best_match([fault]) or fault
        found.append(f"{cause.json_path}: {cause.message}")
    return found


def operation(method: str, path: str) -> dict[str, Any] | None:
    """Return what the contract says about an address."""
    matching = []
    for template, methods in document()["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(template))
        if re.fullmatch(pattern, path.partition("?")[0]) and method.lower() in methods:
            matching.append({"template": template, **methods[method.lower()]})
    return max(matching, key=lambda each: len(each["template"]), default=None)


def check_line(path: str, line: Any) -> None:
    """Assert that a line of a stream is one the contract allows."""
    place = f"/paths/{path.replace('/', '~1')}/post/responses/200/content/application~1x-ndjson/schema"
    assert faults(place, line) == []


def check(method: str, path: str, status: int, kind: str, body: Any) -> None:
    """Assert that an answer is one the contract allows."""
    if method in {"HEAD", "OPTIONS"} or kind in {"text/event-stream", "application/x-ndjson"}:
        return
    described = operation(method, path)
    if status in EVERYWHERE and (described is None or str(status) not in described["responses"]):
        name = next((name for begin, name in ERRORS.items() if path.startswith(begin)), "Error")
        assert faults(f"/components/schemas/{name}", body) == []
        return
    assert described is not None, (method, path, status)
    assert str(status) in described["responses"], (method, path, status, body)
    escaped = described["template"].replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
    response = described["responses"][str(status)]
    place = f"/paths/{escaped}/{method.lower()}/responses/{status}"
    if "$ref" in response:
        place = response["$ref"].removeprefix("#")
        response = document()["components"]["responses"][place.rpartition("/")[2]]
    if "content" not in response:
        assert not body, (method, path, status)
        return
    assert kind in response["content"], (method, path, status, kind)
    assert faults(f"{place}/content/{kind.replace('/', '~1')}/schema", body) == []


def check_event(event: Any) -> None:
    """Assert that an event of a stream is one the contract allows."""
    if event == "[DONE]":
        return
    if "sequence_number" in event:
        assert faults("/components/schemas/ResponseEvent", event) == []
        return
    kinds = {"chat.completion.chunk": "ChatChunk", "text_completion": "TextCompletion", None: "Error"}
    assert faults(f"/components/schemas/{kinds[event.get('object')]}", event) == []
