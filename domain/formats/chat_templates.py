"""Detection by the text of chat templates and by tokens: tool calls, insertion prompts, problems of templates.

A model's formats follow from its chat template and vocabulary, never from its name, and are detected without rendering.
"""

import re
from collections.abc import Callable

import attrs

from mlxk.domain.models.model import ToolsMissing

CALL_MARKS = (
    ("invoke tags after markers", ("]<]minimax[>[",)),
    ("invoke tags", ("<minimax:tool_call>",)),
    ("DSML", ("｜DSML｜",)),
    ("ATEM", ("<atem:function_calls>",)),
    ("Kimi K3", ("<|open|>", "<|close|>", "<|sep|>")),
    ("Kimi K2", ("<|tool_call_begin|>",)),
    ("DeepSeek", ("<｜tool▁call▁begin｜>",)),
    ("Solar", ("<|tool_call:begin|>",)),
    ("Gemma 4", ("<|tool_call>",)),
    ("FunctionGemma", ("<start_function_call>",)),
    ("Mistral", ("[TOOL_CALLS]",)),
    ("LFM2", ("<|tool_call_start|>",)),
    ("LFM2", ("<|tool_list_start|>",)),
    ("LongCat", ("<longcat_tool_call>",)),
    ("GLM", ("<arg_key>",)),
    ("function and param tags", ("<function name=", "<param name=")),
    ("function and parameter tags", ("<function=", "<parameter=")),
    ("Granite", ("<|tool_call|>",)),
    ("Phi-4", ("functools",)),
    ("Command", ("<|START_ACTION|>",)),
    ("Nemotron", ("<TOOLCALL>",)),
    ("tool_calls tags with JSON", ("<tool_calls>",)),
    ("Apertus", ("<|tools_prefix|>",)),
    ("InternLM", ("<|action_start|>", "<|plugin|>")),
    ("GigaChat", ("<|function_call|>",)),
    ("GigaChat messages", ("function call<|role_sep|>",)),
    ("FireFunction", ("<functioncall>",)),
    ("Llama JSON", ("<|python_tag|>",)),
    ("Llama 4 Python", ("<|python_start|>",)),
    ("tool_call tags with JSON", ("<tool_call>",)),
)
"""Name and marks of each syntax of tool calls, the most specific ones first.

A model uses a syntax if its chat template, or its vocabulary, has all of its marks.
"""


def marked_calls(has: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the names of the syntaxes of tool calls whose marks a model has.

    Args:
        has: Tells whether a mark is in the template, or in the vocabulary.
    """
    return tuple(name for name, marks in CALL_MARKS if all(map(has, marks)))


_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_TOOLS_READ = re.compile(r"(?<![.\w])tools\b")
_UNKNOWN_CALLS = ("<|recipient|>",)
"""Marks of templates with syntaxes of calls that are not supported (Functionary 2)."""


def tools_missing(template: str) -> ToolsMissing | None:
    """Return what a model lacks for tool calls, by the text of its chat templates; None when it lacks nothing."""
    code = " ".join(_CODE.findall(_COMMENT.sub("", template)))
    if not _TOOLS_READ.search(_QUOTED.sub("", code)):
        return ToolsMissing.TEMPLATE
    if any(mark in template for mark in _UNKNOWN_CALLS) and not marked_calls(template.__contains__):
        return ToolsMissing.FORMAT
    return None


@attrs.frozen
class InsertionFormat:
    """The format of a model family's fill-in-the-middle prompts."""

    tokens: tuple[str, ...]
    """The control tokens that the vocabulary must have."""
    pattern: str
    """The prompt, with ``{prefix}`` and ``{suffix}``."""

    def prompt(self, prefix: str, suffix: str) -> str:
        """Return the prompt for the text between a prefix and a suffix."""
        before, _, rest = self.pattern.partition("{prefix}")
        if "{suffix}" in before:
            return before.replace("{suffix}", suffix) + prefix + rest
        return before + prefix + rest.replace("{suffix}", suffix)


def _prefix_first(prefix: str, suffix: str, middle: str) -> InsertionFormat:
    return InsertionFormat((prefix, suffix, middle), f"{prefix}{{prefix}}{suffix}{{suffix}}{middle}")


INSERTION_FORMATS = (
    _prefix_first("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    _prefix_first("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _prefix_first("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    _prefix_first("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    InsertionFormat(
        ("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>"),
        "<[fim-suffix]>{suffix}<[fim-prefix]>{prefix}<[fim-middle]>",
    ),
    InsertionFormat(("[SUFFIX]", "[PREFIX]"), "[SUFFIX]{suffix}[PREFIX]{prefix}"),
)
"""The known formats: Qwen, Granite and CodeGemma; StarCoder; SantaCoder; DeepSeek; Seed; Codestral."""


def insertion_format(has: Callable[[str], bool]) -> InsertionFormat | None:
    """Return a model's format of fill-in-the-middle prompts; None when it has no known one.

    Args:
        has: Tells whether a text is a token of the model.
    """
    return next((known for known in INSERTION_FORMATS if all(map(has, known.tokens))), None)


NO_TEMPLATE = "There is no chat template: a conversation can only be one user message, given as plain text."
CALL_UNREAD = "A call as the chat template writes it is not read as that call."

_IGNORED = re.compile(r"\{#.*?#\}|\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}", re.DOTALL)
_STATEMENT = re.compile(r"\{%[-+]?\s*(\w+)")
_BLOCKS = ("if", "for", "macro", "call", "filter", "generation", "with", "block")


def problems_in_text(template: str, *, for_chat: bool) -> tuple[str, ...]:
    """Return the problems of chat templates, a sentence each.

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
    """Return the first kind of block with unequal numbers of starts and ends; None when there is none."""
    statements = _STATEMENT.findall(_IGNORED.sub("", template))
    return next((name for name in _BLOCKS if statements.count(name) != statements.count(f"end{name}")), None)
