"""The tools a chat request offers, and the choice among them."""

import json
from typing import Annotated, Any

import attrs

from mlxk.entrypoints.http.requests.converter import Choice, Range

MAX_TOOLS = 128
"""Tools a request may offer, as OpenAI has it."""

MAX_TOOL_BYTES = 64 * 1024
"""One definition, as JSON."""


@attrs.frozen(kw_only=True)
class FunctionDefinition:
    """A function the model may call."""

    name: Annotated[str, Range(1, 64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@attrs.frozen(kw_only=True)
class ToolParam:
    """A tool on offer."""

    function: FunctionDefinition
    type: Annotated[str, Choice(("function",))] = "function"

    def to_json(self) -> str:
        """Return the definition in OpenAI's form, as text."""
        function = {key: value for key, value in attrs.asdict(self.function).items() if value is not None}
        return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


Tools = Annotated[list[ToolParam], Range(0, MAX_TOOLS)]
