"""The program that renders chat templates: a separate process, run by path, that imports only Jinja's sandbox.

A template comes with a model and may loop forever or write endless text. Here the system limits its processor time,
also within one operation of the interpreter, and its memory. ``template_sandbox`` starts this program and talks to it
through standard input and output, in frames of a length (8 bytes, big-endian) and a JSON document.

Templates get the same functions and filters as in transformers, so that the rendered texts are equal.
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
"""Exit status when the memory limit is exceeded."""

_MEMORY_CHECK_SECONDS = 0.05
"""Processor time between two checks of the memory used."""

_MAX_SEQUENCE = 10_000_000
"""Maximum number of items or characters of a sequence multiplied by a number."""

_MAX_BITS = 65_536
"""Maximum size of a power, and of a factor in a product of integers."""


class GenerationTag(Extension):
    """The block tag that transformers adds to mark the assistant's text; it does not change the text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the content of the block, which has a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]


class _Dictionary:
    """The global ``dict``, without the other attributes of the class."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:  # noqa: ANN401 - values of templates
        return dict(*args, **entries)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:  # noqa: ANN401
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace must not store the attribute {name!r}")
        super().__setitem__(name, value)


class _Environment(SandboxedEnvironment):
    # Not immutable, as in transformers: templates change only this process's copies, and some append to lists.
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Compute a product or a power, unless it would exceed the limits."""
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
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_as_list
    )


def _as_list(value: object) -> list[object]:
    """Convert a generator, such as the result of the filter ``map``; transformers refuses it."""
    if isinstance(value, Generator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def environment() -> Environment:
    """Return the sandbox that templates are compiled in."""
    sandbox = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    sandbox.globals["dict"] = _Dictionary()
    sandbox.globals["namespace"] = _Namespace
    return sandbox


def render(template: Template, variables: dict[str, Any], max_characters: int) -> dict[str, Any]:
    """Return the reply document: the text, or how the template failed."""
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            length += len(piece)
            if length > max_characters:
                return {"fault": "output"}
        text = "".join(pieces)
        text.encode()
    except Exception as error:  # noqa: BLE001 - a template may raise any exception
        return _failure(error)
    return {"text": text}


def _failure(error: Exception) -> dict[str, Any]:
    # ``raise_exception`` raises exactly this class; Jinja's own errors are subclasses.
    if type(error) is TemplateError:
        return {"fault": "refused", "message": str(error)}
    if isinstance(error, TemplateSyntaxError):
        return {"fault": "invalid", "message": str(error)}
    # Python's own message may quote the conversation.
    name = type(error).__name__
    return {"fault": "failed", "message": f"{name}: {error}" if isinstance(error, TemplateError) else name}


def _memory_used() -> int:
    """Return the resident memory, bytes; on systems without ``/proc``, its maximum so far."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _set_limits(seconds: float, max_bytes: int) -> Callable[[], None]:
    """Limit the memory of this process; return a function that starts the timers of one rendering."""
    # The maximum so far may include that of the parent process, which has a model in memory.
    start = _memory_used()

    def check_memory(*_: object) -> None:
        if _memory_used() - start > max_bytes:
            os._exit(EXIT_MEMORY)

    # macOS does not enforce this limit; there only the timed check applies.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (2 * max_bytes, resource.RLIM_INFINITY))
    signal.signal(signal.SIGVTALRM, check_memory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def start_timers() -> None:
        # The default action of this signal ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, _MEMORY_CHECK_SECONDS, _MEMORY_CHECK_SECONDS)

    return start_timers


def _serve(requests: BinaryIO, replies: BinaryIO, seconds: float, max_bytes: int) -> None:
    start_timers = _set_limits(seconds, max_bytes)
    sandbox, templates = environment(), dict[str, Template]()
    while len(header := requests.read(8)) == 8:
        start_timers()
        request = json.loads(requests.read(int.from_bytes(header, "big")))
        text = request["template"]
        try:
            template = templates.get(text)
            if template is None:
                template = templates[text] = sandbox.from_string(text)
            reply = render(template, request["variables"], request["max_characters"])
        except Exception as error:  # noqa: BLE001 - compiling a template may raise any exception
            reply = _failure(error)
        body = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
        replies.write(len(body).to_bytes(8, "big") + body)
        replies.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]), int(sys.argv[2]))
