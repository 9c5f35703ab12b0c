"""Requests of the Responses API to an application on doubles, and tools of every kind."""

from typing import Any

from serving.asking import ask

from mlxk.domain.generation.request import GenerationRequest

PATH = "/v1/responses"
ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": {"type": "text"}}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents.",
    "tools": [{"type": "function", "name": "close"}, {"type": "custom", "name": "note"}],
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def respond(**fields: Any) -> tuple[Any, GenerationRequest, str]:
    """Send a request that is to be answered; return the answer, what reached the engine, and the ignored fields."""
    status, answer, reached, headers = ask(PATH, **{"input": "one two three", **fields})
    assert status == 200, answer
    assert reached is not None
    return answer, reached, headers.get("x-mlxk-ignored-fields", "")
