"""What is wrong with the tools of a file: the rules that the server has for those of a request."""

import json
from collections.abc import Iterator

MAX_TOOLS = 128
"""Tools on offer, as OpenAI has it."""
MAX_TOOL_BYTES = 64 * 1024
"""One definition, as JSON."""
MAX_NAME = 64
"""Characters of a function's name."""


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
    for keyword in ("$defs", "definitions"):
        if isinstance(parameters, dict) and not isinstance(parameters.get(keyword), dict | None):
            yield f".function.parameters.{keyword} must be an object"
    if len(json.dumps(tool, ensure_ascii=False).encode("utf-8", "surrogatepass")) > MAX_TOOL_BYTES:
        yield f" is larger than {MAX_TOOL_BYTES} bytes"
