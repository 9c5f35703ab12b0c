"""Formats of model families: syntaxes of tool calls, prompts for insertion, and what is wrong with chat templates.

A model's formats follow from its chat template and vocabulary, never from its name, and are found without rendering.
Reading a call is the work of ``domain.formats.call_readers``, finding calls in a stream that of
``domain.formats.tool_calls``.
"""

import re
from collections.abc import Callable, Container

import attrs

from mlxk.domain.formats import call_readers as readers
from mlxk.domain.formats import tag_readers
from mlxk.domain.formats.tool_arguments import Reader
from mlxk.domain.models.model import ToolsMissing


@attrs.frozen
class CallSyntax:
    """How one family writes calls."""

    name: str
    openings: tuple[str, ...]
    """The texts that begin a call, or a list of calls."""
    read: Reader
    ends: tuple[str, ...] = ()
    """Texts at which a call may be complete; without any, it is complete when its brackets are balanced."""
    around: tuple[str, ...] = ()
    """Markers before, between and after calls that are no part of any text."""
    marks: tuple[str, ...] = ()
    """All of these in the chat template, or all of them in the vocabulary, tell that a model uses this syntax."""
    bare: bool = False
    """Whether the opening is ordinary text, so that it counts only where an answer or a line begins."""
    offered_only: bool = False
    """Whether only functions on offer can be called, because the opening might be meant as text."""

    @property
    def beginnings(self) -> tuple[str, ...]:
        """The texts with which an answer that is a call begins: an opening, or a marker before it."""
        before = (marker for marker in self.around if marker not in self.ends and "/" not in marker)
        return (*(() if self.bare else self.openings), *(marker for marker in before if "end" not in marker.lower()))


def _marked(
    name: str, opening: str, *ends: str, around: tuple[str, ...] = (), marks: tuple[str, ...] = ()
) -> CallSyntax:
    """Return a syntax of JSON after a marker."""
    return CallSyntax(
        name, (opening,), readers.json_reader(opening, *ends), ends=ends, around=(*ends, *around), marks=marks
    )


TOOL_CALL_JSON = _marked("tool_call tags with JSON", "<tool_call>", "</tool_call>", marks=("<tool_call>",))
FUNCTION_TAGS = CallSyntax(
    "function and parameter tags",
    ("<function=",),
    tag_readers.read_function_tags,
    ends=("</function>",),
    around=("</function>", "<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>"),
    marks=("<function=", "<parameter="),
    offered_only=True,
)
PLAIN_JSON = CallSyntax(
    "plain JSON", ("{", "[", "```"), readers.read_plain, ends=("```",), bare=True, offered_only=True
)
PLAIN_PYTHON = CallSyntax("plain Python", ("[",), readers.read_bare_python, bare=True, offered_only=True)
LLAMA_JSON = _marked("Llama JSON", "<|python_tag|>", "<|eom_id|>", marks=("<|python_tag|>",))
LLAMA_PYTHON = CallSyntax(
    "Llama 4 Python",
    ("<|python_start|>",),
    readers.python_reader("<|python_start|>"),
    ends=("<|python_end|>",),
    around=("<|python_end|>",),
    marks=("<|python_start|>",),
)
_LFM2 = CallSyntax(
    "LFM2",
    ("<|tool_call_start|>",),
    readers.python_reader("<|tool_call_start|>"),
    ends=("<|tool_call_end|>",),
    around=("<|tool_call_end|>",),
    marks=("<|tool_call_start|>",),
)

_FAMILIES = (
    CallSyntax(
        "invoke tags after markers",
        ('<invoke name="', f'{tag_readers.NAMESPACE}<invoke name="'),
        tag_readers.read_namespaced,
        ends=("</invoke>",),
        around=(f"{tag_readers.NAMESPACE}<tool_call>", f"{tag_readers.NAMESPACE}</tool_call>", tag_readers.NAMESPACE),
        marks=(tag_readers.NAMESPACE,),
    ),
    CallSyntax(
        "invoke tags",
        ('<invoke name="',),
        tag_readers.read_invoke,
        ends=("</invoke>",),
        around=("<minimax:tool_call>", "</minimax:tool_call>"),
        marks=("<minimax:tool_call>",),
    ),
    CallSyntax(
        "DSML",
        ('<｜DSML｜invoke name="',),
        tag_readers.read_dsml,
        ends=("</｜DSML｜invoke>",),
        around=(
            "<｜DSML｜function_calls>",
            "</｜DSML｜function_calls>",
            "<｜DSML｜tool_calls>",
            "</｜DSML｜tool_calls>",
        ),
        marks=("｜DSML｜",),
    ),
    CallSyntax(
        "ATEM",
        ('<atem:invoke name="',),
        tag_readers.read_atem,
        ends=("</atem:invoke>",),
        around=("<atem:function_calls>", "</atem:function_calls>"),
        marks=("<atem:function_calls>",),
    ),
    CallSyntax(
        "Kimi K3",
        ('<|open|>call tool="',),
        tag_readers.read_kimi_k3,
        ends=(tag_readers.KIMI_K3_END,),
        around=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        marks=("<|open|>", "<|close|>", "<|sep|>"),
    ),
    CallSyntax(
        "Kimi K2",
        ("<|tool_call_begin|>",),
        readers.header_reader("<|tool_call_end|>"),
        ends=("<|tool_call_end|>",),
        around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_end|>"),
        marks=("<|tool_call_begin|>",),
    ),
    CallSyntax(
        "DeepSeek",
        ("<｜tool▁call▁begin｜>",),
        readers.header_reader("<｜tool▁call▁end｜>"),
        ends=("<｜tool▁call▁end｜>",),
        around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>"),
        marks=("<｜tool▁call▁begin｜>",),
    ),
    CallSyntax(
        "Solar",
        ("<|tool_call:begin|>",),
        readers.read_solar,
        ends=("<|tool_call:end|>",),
        around=("<|tool_calls|>", "<|calls|>", "<|tool_call:end|>"),
        marks=("<|tool_call:begin|>",),
    ),
    CallSyntax(
        "Gemma 4",
        ("<|tool_call>",),
        readers.unquoted_reader('<|"|>', "<tool_call|>"),
        ends=("<tool_call|>",),
        around=("<tool_call|>",),
        marks=("<|tool_call>",),
    ),
    CallSyntax(
        "FunctionGemma",
        ("<start_function_call>",),
        readers.unquoted_reader("<escape>", "<end_function_call>"),
        ends=("<end_function_call>",),
        around=("<end_function_call>",),
        marks=("<start_function_call>",),
    ),
    CallSyntax("Mistral", ("[TOOL_CALLS]",), readers.read_mistral, around=("[/TOOL_CALLS]",), marks=("[TOOL_CALLS]",)),
    _LFM2,
    attrs.evolve(_LFM2, marks=("<|tool_list_start|>",)),
    CallSyntax(
        "LongCat",
        ("<longcat_tool_call>",),
        tag_readers.key_value_reader("longcat_"),
        ends=("</longcat_tool_call>",),
        around=("</longcat_tool_call>",),
        marks=("<longcat_tool_call>",),
    ),
    CallSyntax(
        "GLM",
        ("<tool_call>",),
        tag_readers.key_value_reader(""),
        ends=("</tool_call>",),
        around=("</tool_call>", "<tool_calls>", "</tool_calls>"),
        marks=("<arg_key>",),
    ),
    CallSyntax(
        "function and param tags",
        ('<function name="',),
        tag_readers.read_param,
        ends=("</function>",),
        marks=("<function name=", "<param name="),
    ),
    FUNCTION_TAGS,
    _marked("Granite", "<|tool_call|>", marks=("<|tool_call|>",)),
    _marked("Phi-4", "functools", marks=("functools",)),
    _marked("Command", "<|START_ACTION|>", "<|END_ACTION|>", marks=("<|START_ACTION|>",)),
    _marked("Nemotron", "<TOOLCALL>", "</TOOLCALL>", marks=("<TOOLCALL>",)),
    _marked("tool_calls tags with JSON", "<tool_calls>", "</tool_calls>", marks=("<tool_calls>",)),
    _marked("Apertus", "<|tools_prefix|>", "<|tools_suffix|>", marks=("<|tools_prefix|>",)),
    _marked("InternLM", "<|action_start|><|plugin|>", "<|action_end|>", marks=("<|action_start|>", "<|plugin|>")),
    _marked("GigaChat", "<|function_call|>", marks=("<|function_call|>",)),
    _marked(
        "GigaChat messages", "function call<|role_sep|>\n", "<|message_sep|>", marks=("function call<|role_sep|>",)
    ),
    _marked("FireFunction", "<functioncall>", "</functioncall>", marks=("<functioncall>",)),
    LLAMA_JSON,
    LLAMA_PYTHON,
    TOOL_CALL_JSON,
)
"""The syntaxes by their marks, the most telling ones first."""


_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_TOOLS_READ = re.compile(r"(?<![.\w])tools\b")
_UNKNOWN_CALLS = ("<|recipient|>",)
"""Marks of templates whose models write calls in a way that no syntax here reads (Functionary 2)."""


def tools_missing(template: str) -> ToolsMissing | None:
    """Return what a model lacks for tool calls, by the text of its chat templates; None when it lacks nothing."""
    code = " ".join(_CODE.findall(_COMMENT.sub("", template)))
    if not _TOOLS_READ.search(_QUOTED.sub("", code)):
        return ToolsMissing.TEMPLATE
    if any(mark in template for mark in _UNKNOWN_CALLS) and not detect_syntaxes(template, ()):
        return ToolsMissing.FORMAT
    return None


def detect_syntaxes(template: str | None, vocabulary: Container[str]) -> tuple[CallSyntax, ...]:
    """Detect the syntaxes of a model's own calls; none when it has none of its own.

    Args:
        template: The text of the chat template; None when the model has none.
        vocabulary: Every token, added ones included.
    """
    text = template or ""
    written = tuple(each for each in _FAMILIES if all(mark in text for mark in each.marks))
    if written:
        return written
    return tuple(each for each in _FAMILIES if all(mark in vocabulary for mark in each.marks))


LAST_RESORT = (TOOL_CALL_JSON, FUNCTION_TAGS, LLAMA_JSON, LLAMA_PYTHON, PLAIN_JSON, PLAIN_PYTHON)
"""The syntaxes that any model may use when tools are on offer."""


@attrs.frozen
class InsertionFormat:
    """How a family writes such a prompt."""

    tokens: tuple[str, ...]
    """The tokens of the vocabulary that it needs."""
    pattern: str
    """The prompt, with ``{prefix}`` and ``{suffix}``."""

    def prompt(self, prefix: str, suffix: str) -> str:
        """Return the prompt whose completion belongs between two texts."""
        before, _, rest = self.pattern.partition("{prefix}")
        if "{suffix}" in before:
            return before.replace("{suffix}", suffix) + prefix + rest
        return before + prefix + rest.replace("{suffix}", suffix)


def _in_order(prefix: str, suffix: str, middle: str) -> InsertionFormat:
    return InsertionFormat((prefix, suffix, middle), f"{prefix}{{prefix}}{suffix}{{suffix}}{middle}")


INSERTION_FORMATS = (
    _in_order("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    _in_order("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _in_order("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    _in_order("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    InsertionFormat(
        ("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>"),
        "<[fim-suffix]>{suffix}<[fim-prefix]>{prefix}<[fim-middle]>",
    ),
    InsertionFormat(("[SUFFIX]", "[PREFIX]"), "[SUFFIX]{suffix}[PREFIX]{prefix}"),
)
"""The formats that are known: Qwen, Granite and CodeGemma; StarCoder; SantaCoder; DeepSeek; Seed; Codestral."""


def insertion_format(has: Callable[[str], bool]) -> InsertionFormat | None:
    """Return the format of a model; None when it has none that is known.

    Args:
        has: Whether a text is a token of the model.
    """
    return next((each for each in INSERTION_FORMATS if all(map(has, each.tokens))), None)


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
