"""What is wrong with the tools of a file, which no schema of a request has checked."""

import json
from collections.abc import Iterator

from mlxk.domain.tool_definition import MAX_NAME, MAX_TOOL_BYTES, MAX_TOOLS, misplaced_definitions


def tool_faults(definitions: object) -> list[str]:
    """Return what is wrong with function definitions in OpenAI's form, each fault with the field it is in."""
    if not isinstance(definitions, list) or not all(isinstance(each, dict) for each in definitions):
        return ["must be a JSON array of function definitions"]
    if len(definitions) > MAX_TOOLS:
        return [f"must have at most {MAX_TOOLS} entries (has {len(definitions)})"]
    return [f"[{index}]{fault}" for index, tool in enumerate(definitions) for fault in _faults(tool)]


def _faults(tool: dict[str, object]) -> Iterator[str]:
    function = tool.get("function")
    if tool.get("type", "function") != "function":
        yield '.type must be "function"'
    if not isinstance(function, dict):
        yield ".function must be an object"
        return
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        yield f".function.name must be a text of 1 to {MAX_NAME} characters"
    if not isinstance(function.get("description"), str | None):
        yield ".function.description must be a text"
    if not isinstance(parameters, dict | None):
        yield ".function.parameters must be an object"
    for keyword in misplaced_definitions(parameters if isinstance(parameters, dict) else None):
        yield f".function.parameters.{keyword} must be an object"
    if len(json.dumps(tool, ensure_ascii=False).encode("utf-8", "surrogatepass")) > MAX_TOOL_BYTES:
        yield f" is larger than {MAX_TOOL_BYTES} bytes"
