"""The program that renders chat templates: a process of its own, run by path, with nothing but Jinja's sandbox.

A template comes with a model, so it may be endless, or make endless text. Here the system ends it: by processor time,
also within one operation of the interpreter, and by memory. ``template_sandbox`` starts this program and talks to it
through its standard input and output: frames of a length (8 bytes, big-endian) and a JSON document.

What templates are given is what transformers gives them, so that texts are equal to its own.
"""

import datetime
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import Namespace

EXIT_MEMORY = 3
"""Exit status after too much memory."""

_MEMORY_CHECK_SECONDS = 0.05
"""Processor time between two checks of the memory used."""

_MAX_SEQUENCE = 10_000_000
"""Items, or characters, of a product with a number."""

_MAX_BITS = 65_536
"""Size of a number."""


class GenerationTag(Extension):
    """The block tag that transformers adds for marking the assistant's text; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the content of the block, which has a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]


class _Dictionary:
    """The global ``dict``, without the attributes of the class."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:  # noqa: ANN401 - what templates hold
        return dict(*args, **entries)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:  # noqa: ANN401
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace must not store the attribute {name!r}")
        super().__setitem__(name, value)


class _Environment(SandboxedEnvironment):
    # Not transformers' immutable one: what a template can change here is its own copy, and some append to lists.
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Compute a product or a power, unless it is too large to compute within the limits."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > _MAX_BITS:
                raise OverflowError("a power is too large")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if (
                    isinstance(times, int)
                    and isinstance(many, (str, list, tuple))
                    and len(many) * times > _MAX_SEQUENCE
                ):
                    raise OverflowError("a product is too long")
                if isinstance(times, int) and isinstance(many, int) and times.bit_length() > _MAX_BITS:
                    raise OverflowError("a product is too large")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_listed
    )


def _listed(value: object) -> list[object]:
    """Return what a filter such as ``map`` yields, which transformers refuses."""
    if isinstance(value, Generator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def environment() -> Environment:
    """Return the sandbox that templates are compiled in."""
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    made.globals["dict"] = _Dictionary()
    made.globals["namespace"] = _Namespace
    return made


def render(template: Template, variables: dict[str, Any], most_characters: int) -> dict[str, Any]:
    """Return the text, or how the template failed."""
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            length += len(piece)
            if length > most_characters:
                return {"fault": "output"}
        text = "".join(pieces)
        text.encode()
    except Exception as error:  # noqa: BLE001 - a template may raise whatever Python can
        return _failure(error)
    return {"text": text}


def _failure(error: Exception) -> dict[str, Any]:
    # A template that refuses a conversation raises exactly this class, no subclass.
    if type(error) is TemplateError:
        return {"fault": "refused", "message": str(error)}
    if isinstance(error, TemplateSyntaxError):
        return {"fault": "invalid", "message": str(error)}
    # Python's own message may quote the conversation.
    name = type(error).__name__
    return {"fault": "failed", "message": f"{name}: {error}" if isinstance(error, TemplateError) else name}


def _memory_used() -> int:
    """Return the resident memory, bytes; where the system does not tell it, the largest so far."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _limit(seconds: float, most_bytes: int) -> Callable[[], None]:
    """Limit the memory of this process; return a function that begins the time of one rendering."""
    # The largest size so far may be that of the process that started this one, which has a model in memory.
    start = _memory_used()

    def look(*_: object) -> None:
        if _memory_used() - start > most_bytes:
            os._exit(EXIT_MEMORY)

    # Where this limit is not enforced (macOS), only the check of what is in use applies.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (2 * most_bytes, resource.RLIM_INFINITY))
    signal.signal(signal.SIGVTALRM, look)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def begin() -> None:
        # The default action of this signal ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, _MEMORY_CHECK_SECONDS, _MEMORY_CHECK_SECONDS)

    return begin


def _serve(requests: BinaryIO, replies: BinaryIO, seconds: float, most_bytes: int) -> None:
    begin = _limit(seconds, most_bytes)
    sandbox, templates = environment(), dict[str, Template]()
    while len(header := requests.read(8)) == 8:
        begin()
        asked = json.loads(requests.read(int.from_bytes(header, "big")))
        text = asked["template"]
        try:
            template = templates.get(text)
            if template is None:
                template = templates[text] = sandbox.from_string(text)
            reply = render(template, asked["variables"], asked["most_characters"])
        except Exception as error:  # noqa: BLE001 - the compiler may fail like the template
            reply = _failure(error)
        written = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
        replies.write(len(written).to_bytes(8, "big") + written)
        replies.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]), int(sys.argv[2]))
