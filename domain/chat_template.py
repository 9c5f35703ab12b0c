"""The chat template of a model: where it may stand, and what its text tells about tools and reasoning.

Owns finding the template's text among the files; rendering it is the text generator's work.
"""

from collections.abc import Sequence

from mlxk.domain.documents import Document
from mlxk.domain.reasoning import OPENINGS

TEMPLATE_DOCUMENT = "chat_template.json"
TEMPLATE_FILES = (
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "additional_chat_templates/tool_use.jinja",
)
"""Where transformers finds the template of a conversation, and the one it takes instead when there are tools."""

_TOOL_MARKERS = ("tools", "tool_call")
_REASONING_MARKERS = ("enable_thinking", *OPENINGS)


def template_text(tokenizer_config: Document, template_document: Document, template_files: Sequence[str]) -> str:
    """Return the text of all templates of a model, joined; empty when it has none."""
    texts = [*_templates(tokenizer_config), *_templates(template_document), *template_files]
    return "\n".join(text for text in texts if text.strip())


def supports_tools(text: str) -> bool:
    """Whether a template tells the model about tools."""
    return any(marker in text for marker in _TOOL_MARKERS)


def supports_reasoning(text: str) -> bool:
    """Whether a template knows a part of the answer that is thought and not said."""
    return any(marker in text for marker in _REASONING_MARKERS)


def _templates(document: Document) -> list[str]:
    """Return the templates under ``chat_template``: one text, or a list of named ones."""
    value = document.mapping.get("chat_template")
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    texts = [item.get("template") if isinstance(item, dict) else item for item in value]
    return [text for text in texts if isinstance(text, str)]
