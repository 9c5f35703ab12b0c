"""The syntaxes of tool calls of all model families, and their detection.

``domain.formats.chat_templates`` has the marks by which a model's syntax is detected, ``domain.formats.call_readers``
reads a call, and ``domain.formats.tool_calls`` finds calls in a stream.
"""

from collections.abc import Container

import attrs

from mlxk.domain.formats import call_readers as readers
from mlxk.domain.formats import tag_readers
from mlxk.domain.formats.chat_templates import marked_calls
from mlxk.domain.formats.tool_arguments import Reader


@attrs.frozen
class CallSyntax:
    """One family's syntax of tool calls."""

    name: str
    openings: tuple[str, ...]
    """Markers that begin a call, or a list of calls."""
    read: Reader
    ends: tuple[str, ...] = ()
    """Markers at which a call may be complete; without any, it is complete when its brackets are balanced."""
    around: tuple[str, ...] = ()
    """Markers before, between and after calls; they are dropped from the text."""
    bare: bool = False
    """Whether the opening is ordinary text, so that it counts only at the start of an answer or a line."""
    offered_only: bool = False
    """Whether only functions on offer can be called, because the opening may be meant as text."""

    @property
    def beginnings(self) -> tuple[str, ...]:
        """The texts that begin an answer which is a call: an opening, or a marker before it."""
        before = (marker for marker in self.around if marker not in self.ends and "/" not in marker)
        return (*(() if self.bare else self.openings), *(marker for marker in before if "end" not in marker.lower()))


def _marked(name: str, opening: str, *ends: str) -> CallSyntax:
    """Return a syntax of JSON after an opening marker."""
    return CallSyntax(name, (opening,), readers.json_reader(opening, *ends), ends=ends, around=ends)


TOOL_CALL_JSON = _marked("tool_call tags with JSON", "<tool_call>", "</tool_call>")
FUNCTION_TAGS = CallSyntax(
    "function and parameter tags",
    ("<function=",),
    tag_readers.read_function_tags,
    ends=("</function>",),
    around=("</function>", "<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>"),
    offered_only=True,
)
PLAIN_JSON = CallSyntax(
    "plain JSON", ("{", "[", "```"), readers.read_plain, ends=("```",), bare=True, offered_only=True
)
PLAIN_PYTHON = CallSyntax("plain Python", ("[",), readers.read_bare_python, bare=True, offered_only=True)
LLAMA_JSON = _marked("Llama JSON", "<|python_tag|>", "<|eom_id|>")
LLAMA_PYTHON = CallSyntax(
    "Llama 4 Python",
    ("<|python_start|>",),
    readers.python_reader("<|python_start|>"),
    ends=("<|python_end|>",),
    around=("<|python_end|>",),
)
_LFM2 = CallSyntax(
    "LFM2",
    ("<|tool_call_start|>",),
    readers.python_reader("<|tool_call_start|>"),
    ends=("<|tool_call_end|>",),
    around=("<|tool_call_end|>",),
)

_FAMILIES = {
    syntax.name: syntax
    for syntax in (
        CallSyntax(
            "invoke tags after markers",
            ('<invoke name="', f'{tag_readers.NAMESPACE}<invoke name="'),
            tag_readers.read_namespaced,
            ends=("</invoke>",),
            around=(
                f"{tag_readers.NAMESPACE}<tool_call>",
                f"{tag_readers.NAMESPACE}</tool_call>",
                tag_readers.NAMESPACE,
            ),
        ),
        CallSyntax(
            "invoke tags",
            ('<invoke name="',),
            tag_readers.read_invoke,
            ends=("</invoke>",),
            around=("<minimax:tool_call>", "</minimax:tool_call>"),
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
        ),
        CallSyntax(
            "ATEM",
            ('<atem:invoke name="',),
            tag_readers.read_atem,
            ends=("</atem:invoke>",),
            around=("<atem:function_calls>", "</atem:function_calls>"),
        ),
        CallSyntax(
            "Kimi K3",
            ('<|open|>call tool="',),
            tag_readers.read_kimi_k3,
            ends=(tag_readers.KIMI_K3_END,),
            around=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        ),
        CallSyntax(
            "Kimi K2",
            ("<|tool_call_begin|>",),
            readers.header_reader("<|tool_call_end|>"),
            ends=("<|tool_call_end|>",),
            around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_end|>"),
        ),
        CallSyntax(
            "DeepSeek",
            ("<｜tool▁call▁begin｜>",),
            readers.header_reader("<｜tool▁call▁end｜>"),
            ends=("<｜tool▁call▁end｜>",),
            around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>"),
        ),
        CallSyntax(
            "Solar",
            ("<|tool_call:begin|>",),
            readers.read_solar,
            ends=("<|tool_call:end|>",),
            around=("<|tool_calls|>", "<|calls|>", "<|tool_call:end|>"),
        ),
        CallSyntax(
            "Gemma 4",
            ("<|tool_call>",),
            readers.unquoted_reader('<|"|>', "<tool_call|>"),
            ends=("<tool_call|>",),
            around=("<tool_call|>",),
        ),
        CallSyntax(
            "FunctionGemma",
            ("<start_function_call>",),
            readers.unquoted_reader("<escape>", "<end_function_call>"),
            ends=("<end_function_call>",),
            around=("<end_function_call>",),
        ),
        CallSyntax("Mistral", ("[TOOL_CALLS]",), readers.read_mistral, around=("[/TOOL_CALLS]",)),
        _LFM2,
        CallSyntax(
            "LongCat",
            ("<longcat_tool_call>",),
            tag_readers.key_value_reader("longcat_"),
            ends=("</longcat_tool_call>",),
            around=("</longcat_tool_call>",),
        ),
        CallSyntax(
            "GLM",
            ("<tool_call>",),
            tag_readers.key_value_reader(""),
            ends=("</tool_call>",),
            around=("</tool_call>", "<tool_calls>", "</tool_calls>"),
        ),
        CallSyntax("function and param tags", ('<function name="',), tag_readers.read_param, ends=("</function>",)),
        FUNCTION_TAGS,
        _marked("Granite", "<|tool_call|>"),
        _marked("Phi-4", "functools"),
        _marked("Command", "<|START_ACTION|>", "<|END_ACTION|>"),
        _marked("Nemotron", "<TOOLCALL>", "</TOOLCALL>"),
        _marked("tool_calls tags with JSON", "<tool_calls>", "</tool_calls>"),
        _marked("Apertus", "<|tools_prefix|>", "<|tools_suffix|>"),
        _marked("InternLM", "<|action_start|><|plugin|>", "<|action_end|>"),
        _marked("GigaChat", "<|function_call|>"),
        _marked("GigaChat messages", "function call<|role_sep|>\n", "<|message_sep|>"),
        _marked("FireFunction", "<functioncall>", "</functioncall>"),
        LLAMA_JSON,
        LLAMA_PYTHON,
        TOOL_CALL_JSON,
    )
}
"""The syntaxes by their names."""


def detect_syntaxes(template: str | None, vocabulary: Container[str]) -> tuple[CallSyntax, ...]:
    """Detect the syntaxes of a model's tool calls; empty when there are none.

    Args:
        template: The text of the chat template; None when the model has none.
        vocabulary: Every token, added ones included.
    """
    text = template or ""
    names = marked_calls(text.__contains__) or marked_calls(vocabulary.__contains__)
    return tuple(_FAMILIES[name] for name in names)


LAST_RESORT = (TOOL_CALL_JSON, FUNCTION_TAGS, LLAMA_JSON, LLAMA_PYTHON, PLAIN_JSON, PLAIN_PYTHON)
"""The syntaxes that any model may use when tools are on offer."""
