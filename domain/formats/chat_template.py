"""What the text of a chat template says about a model: whether it supports tools and reasoning."""

from mlxk.domain.formats.reasoning import OPENINGS

_TOOL_MARKERS = ("tools", "tool_call")
_REASONING_MARKERS = ("enable_thinking", *OPENINGS)


def supports_tools(text: str) -> bool:
    """Whether a template tells the model about tools."""
    return any(marker in text for marker in _TOOL_MARKERS)


def supports_reasoning(text: str) -> bool:
    """Whether a template knows a part of the answer that is thought and not said."""
    return any(marker in text for marker in _REASONING_MARKERS)
