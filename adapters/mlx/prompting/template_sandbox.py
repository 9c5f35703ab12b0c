"""Rendering of a model's conversations: by its chat template in a separate process, or by a library's own code.

A template cannot block the server or exhaust its memory. One process renders the templates of one model; it is started
at the first rendering, or earlier while the model loads, and again after it ended. It runs ``template_process``, and
ends when its pipe is closed, also when the server is killed.
"""

import contextlib
import enum
import json
import selectors
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from jinja2 import TemplateError

from mlxk.adapters.mlx.prompting import template_process
from mlxk.adapters.mlx.prompting.template_inputs import WirePrompt
from mlxk.domain.errors import InterruptedRunError
from mlxk.domain.generation.request import nobody_left

SECONDS = 3.0
"""Limit of the processor time of one rendering; usual renderings take milliseconds."""

MEMORY_BYTES = 1024**3
"""Limit of the memory that rendering takes."""

EXTRA_CHARACTERS = 16 * 1024**2
"""A rendered text may have so many characters more than four times those of the conversation."""

_POLL_SECONDS = 0.2
"""Interval of checking whether the client has gone."""

_ATTEMPTS = 2
"""Attempts at a rendering whose process ends for another reason than its limits."""


@contextlib.contextmanager
def waiting_lock(lock: threading.Lock, is_abandoned: Callable[[], bool]) -> Iterator[None]:
    """Hold a lock in the block, unless the client has gone before the lock is free.

    Raises:
        InterruptedRunError: The client has gone.
    """
    while not lock.acquire(timeout=_POLL_SECONDS):
        if is_abandoned():
            raise InterruptedRunError("interrupted")
    try:
        yield
    finally:
        lock.release()


class FaultKind(enum.Enum):
    """How a rendering failed."""

    REFUSED = "refused"
    """The template raised an exception of its own, with a message."""
    INVALID = "invalid"
    """The template has a syntax error."""
    FAILED = "failed"
    """An operation in the template failed for these values."""
    LIMIT = "limit"
    """It took too much time or memory, or wrote too much text."""
    UNCONTINUED = "uncontinued"
    """The text of the last message, which is to be continued, is missing from the rendered text."""


class TemplateFault(Exception):  # noqa: N818 - never leaves this package
    """A rendering failed.

    Args:
        kind: How it failed.
        message: The template's own message, or the limit; may quote the template, but not the conversation.
    """

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class TemplateSandbox:
    """Renders the templates of one model. Thread-safe: one rendering at a time.

    Args:
        seconds: Limit of the processor time of one rendering.
        memory_bytes: Limit of the memory that rendering takes.
    """

    def __init__(self, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def render(
        self, template: str, variables: Mapping[str, Any], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        """Return the rendered text.

        Args:
            template: The text of the template.
            variables: Its variables; JSON values.
            is_abandoned: Returns whether the client has gone; the process is then ended.

        Raises:
            TemplateFault: See ``FaultKind``.
            InterruptedRunError: The client has gone.
        """
        serialized = json.dumps(variables, ensure_ascii=False)
        limit = EXTRA_CHARACTERS + 4 * len(serialized)
        head = f'{{"template": {json.dumps(template)}, "max_characters": {limit}, "variables": '
        request = f"{head}{serialized}}}".encode("utf-8", "surrogatepass")
        with waiting_lock(self._lock, is_abandoned):
            reply = self._ask(request, is_abandoned)
        if "text" in reply:
            return str(reply["text"])
        if reply["fault"] == "output":
            raise TemplateFault(FaultKind.LIMIT, f"it writes more than {limit} characters")
        raise TemplateFault(FaultKind(reply["fault"]), reply["message"])

    def _ask(self, request: bytes, is_abandoned: Callable[[], bool]) -> Mapping[str, Any]:
        for _ in range(_ATTEMPTS):
            if self._process is None or not self._process.alive:
                self._process = _new_process(self._seconds, self._memory_bytes)
            try:
                reply = self._process.ask(request, is_abandoned)
            except BaseException:
                self._process.end()
                self._process = None
                raise
            if reply is not None:
                document: Mapping[str, Any] = json.loads(reply)
                return document
            status, self._process = self._process.end(), None
            if status == template_process.EXIT_MEMORY:
                megabytes = self._memory_bytes // 1024**2
                raise TemplateFault(FaultKind.LIMIT, f"it takes more than {megabytes} MiB of memory")
            if status == -signal.SIGPROF:
                raise TemplateFault(FaultKind.LIMIT, f"it takes more than {self._seconds:g} seconds")
        # Something else may end it once, such as the system when memory is short.
        raise TemplateFault(FaultKind.LIMIT, "it ends the process that renders it")


class _Process:
    def __init__(self, seconds: float, memory_bytes: int) -> None:
        # Isolated from the environment and the current directory; its standard error is discarded.
        command = [sys.executable, "-I", template_process.__file__, str(seconds), str(memory_bytes)]
        # In a process group of its own, so that Ctrl-C does not end it while its parent still answers requests.
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._child.stdout or 0, selectors.EVENT_READ)
        self._finalizer = weakref.finalize(self, _end, self._child, self._selector)

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def ask(self, request: bytes, is_abandoned: Callable[[], bool]) -> bytes | None:
        """Return the reply; None when the process ended instead.

        Raises:
            InterruptedRunError: The client has gone.
        """
        if self._child.stdin is None:
            return None
        with contextlib.suppress(BrokenPipeError):
            frame = memoryview(len(request).to_bytes(8, "big") + request)
            while frame:
                frame = frame[self._child.stdin.write(frame) :]
        header = self._read(8, is_abandoned)
        return self._read(int.from_bytes(header, "big"), is_abandoned) if header else None

    def _read(self, count: int, is_abandoned: Callable[[], bool]) -> bytes | None:
        parts: list[bytes] = []
        while count and self._child.stdout is not None:
            while not self._selector.select(_POLL_SECONDS):
                if is_abandoned():
                    self._child.kill()
                    raise InterruptedRunError("interrupted")
            part = self._child.stdout.read(min(count, 1024**2))
            if not part:
                return None
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def end(self) -> int | None:
        """End the process, and return its exit status."""
        self._finalizer()
        return self._child.returncode


_ahead: list[_Process] = []
"""At most one process with the default limits, started before it is needed."""

_ahead_lock = threading.Lock()


def start_ahead() -> None:
    """Start the process for the next sandbox, unless one is ready; returns at once."""
    with _ahead_lock:
        if not (_ahead and _ahead[0].alive):
            _ahead[:] = [_Process(SECONDS, MEMORY_BYTES)]


def _new_process(seconds: float, memory_bytes: int) -> _Process:
    """Return the process that was started ahead, or a new one."""
    with _ahead_lock:
        if _ahead and (seconds, memory_bytes) == (SECONDS, MEMORY_BYTES) and _ahead[0].alive:
            return _ahead.pop()
    return _Process(seconds, memory_bytes)


def _end(child: "subprocess.Popen[bytes]", selector: selectors.BaseSelector) -> None:
    selector.close()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        child.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


LIBRARY_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""Exceptions that libraries' renderers raise for unexpected values."""


class TemplateEngine(Protocol):
    """Renders the conversations of one model."""

    @property
    def template(self) -> object:
        """The text of the template, or a mapping of texts by name; None where a library has code instead."""

    def render(
        self, prompt: WirePrompt, variables: Mapping[str, object], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateFault: It cannot be rendered.
            InterruptedRunError: The client has gone.
        """


class SandboxedTemplate(TemplateEngine):
    """The template of a tokenizer or processor, rendered in the sandbox.

    Args:
        holder: Tokenizer or processor; its ``chat_template`` is the template.
        tokenizer: Its special tokens are variables of the template.
    """

    def __init__(self, holder: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers has no types to name
        self._holder = holder
        self._tokens = {
            name: [str(each) for each in token] if isinstance(token, (list, tuple)) else str(token)
            for name, token in tokenizer.special_tokens_map.items()
        }
        self._sandbox = TemplateSandbox()

    @property
    def template(self) -> object:
        return self._holder.chat_template

    def render(
        self, prompt: WirePrompt, variables: Mapping[str, object], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        empty: list[object] | None = [] if prompt.has_empty_lists else None
        inputs = {"messages": prompt.messages, "tools": prompt.tools or empty, "documents": empty}
        text = self._template_text(has_tools=bool(prompt.tools))
        return self._sandbox.render(text, {**self._tokens, **inputs, **variables}, is_abandoned)

    def _template_text(self, *, has_tools: bool) -> str:
        """Return the template for a conversation with or without tools, as transformers chooses it."""
        template = self.template
        if not isinstance(template, Mapping):
            return str(template)
        name = "tool_use" if has_tools and "tool_use" in template else "default"
        if name not in template:
            raise TemplateFault(FaultKind.INVALID, "there are several, and none is the default")
        return str(template[name])


class LibraryTemplate(TemplateEngine):
    """A library's own code in place of a template.

    Args:
        holder: Tokenizer or processor with its own ``apply_chat_template``.
    """

    def __init__(self, holder: Any) -> None:  # noqa: ANN401
        self._holder = holder

    @property
    def template(self) -> object:
        return getattr(self._holder, "chat_template", None)

    def render(
        self, prompt: WirePrompt, variables: Mapping[str, object], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        if not prompt.messages:
            raise TemplateFault(FaultKind.FAILED, "no messages")
        options = {**variables, "tools": list(prompt.tools)} if prompt.tools else dict(variables)
        try:
            text = str(self._holder.apply_chat_template(list(prompt.messages), tokenize=False, **options))
            text.encode()
        except TemplateError as error:
            kind = FaultKind.REFUSED if type(error) is TemplateError else FaultKind.FAILED
            raise TemplateFault(kind, str(error)) from error
        except LIBRARY_ERRORS as error:
            raise TemplateFault(FaultKind.FAILED, type(error).__name__) from error
        return text
