"""What is wrong with a model's formats, as far as the text of its chat templates shows it, without rendering them."""

import re

from mlxk.domain.formats.call_syntaxes import tools_missing
from mlxk.domain.models.model import ToolsMissing

NO_TEMPLATE = "There is no chat template: a conversation can only be one user message, given as plain text."
CALL_UNREAD = "A call as the chat template writes it is not read as that call."

_IGNORED = re.compile(r"\{#.*?#\}|\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}", re.DOTALL)
_STATEMENT = re.compile(r"\{%[-+]?\s*(\w+)")
_BLOCKS = ("if", "for", "macro", "call", "filter", "generation", "with", "block")


def problems_in_text(template: str, *, for_chat: bool) -> tuple[str, ...]:
    """Return the problems, a sentence each.

    Args:
        template: The text of the chat templates; empty without one.
        for_chat: Whether the model is made for conversations.
    """
    if not template:
        return (NO_TEMPLATE,) if for_chat else ()
    open_block = _open_block(template)
    if open_block is not None:
        return (
            f"The chat template cannot be rendered: its blocks '{open_block}' do not all have a beginning and end.",
        )
    return (CALL_UNREAD,) if tools_missing(template) is ToolsMissing.FORMAT else ()


def _open_block(template: str) -> str | None:
    """Return the first kind of block whose beginnings and ends differ in number; None when there is none."""
    found = _STATEMENT.findall(_IGNORED.sub("", template))
    return next((name for name in _BLOCKS if found.count(name) != found.count(f"end{name}")), None)
