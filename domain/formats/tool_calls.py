"""Incremental splitting of a completion into text and tool calls.

``domain.formats.family_formats`` has the syntaxes. A call is emitted when it is complete; an incomplete one is text. A
call that a grammar enforces cannot fail, so its arguments are streamed.
"""

import json
import re
import uuid
from collections.abc import Callable, Sequence

import attrs

from mlxk.domain.formats.family_formats import LAST_RESORT, CallSyntax
from mlxk.domain.formats.scanner import MarkerScanner, ScannedText
from mlxk.domain.formats.tool_arguments import LONGEST_OPENING, Call, NoCallError, Reading, Tools
from mlxk.domain.formats.values import Balance, MalformedValueError, UnfinishedValueError
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import TextDelta, ToolCallDelta
from mlxk.domain.text import is_valid_unicode

_EAGER_LENGTH = 64
"""Characters up to which a section is parsed at every chunk, to reject what is no call early."""

_FREE_ATTEMPTS = 16
"""Number of attempts to parse a section, after which each further attempt needs a tenth more text."""

MAX_FAILED_SECTIONS = 32
"""Rejected sections of a completion, after which the rest is text: each rejected section is scanned a second time."""


def new_call_id() -> str:
    """Return an id for a call, in OpenAI's form."""
    return f"call_{uuid.uuid4().hex[:24]}"


@attrs.frozen
class ToolCallFormat:
    """A model's syntaxes of tool calls, and the functions on offer."""

    syntaxes: tuple[CallSyntax, ...]
    """The model's own syntaxes; those of the last resort are tried after them."""
    tools: Tools
    new_id: Callable[[], str] = new_call_id
    """Generates the id of a call without one."""

    @property
    def candidates(self) -> tuple[CallSyntax, ...]:
        """The syntaxes to try, in order."""
        return (*self.syntaxes, *(syntax for syntax in LAST_RESORT if syntax not in self.syntaxes))

    def completed(self, call: Call) -> ToolCall:
        """Return a call with an id and its arguments as JSON text.

        Raises:
            NoCallError: The arguments cannot be written as JSON.
        """
        try:
            text = json.dumps(dict(call.arguments), ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise NoCallError from error
        if not is_valid_unicode(text):
            text = json.dumps(dict(call.arguments))
        return ToolCall(call.name, text, call.id or self.new_id())


class _Section:
    """Text after an opening, buffered until it is a complete call or turns out to be text."""

    def __init__(self, opening: str, syntaxes: Sequence[CallSyntax], tools: Tools, marked: bool) -> None:
        self.opening = opening
        self.text = opening
        self.syntaxes = list(syntaxes)
        """The syntaxes that have not rejected the text yet."""
        self._tools = tools
        self._marked = marked
        self._balance = Balance()
        self._balanced = False
        if any(syntax.bare for syntax in syntaxes):
            self._balance.feed(opening)
        self._attempts = 0
        self._tried_length = 0
        self._ends = tuple({end for syntax in syntaxes for end in syntax.ends})
        self._longest_end = max(map(len, self._ends), default=0)

    def feed(self, text: str, ended: bool = False, complete: bool = False) -> Reading | None:
        """Add the next chunk; return the calls once they are complete, and None before.

        Args:
            text: The chunk.
            ended: Whether it is the last chunk.
            complete: Whether the model ended its answer itself, so that the end marker of a call may be missing.

        Raises:
            NoCallError: The section is text.
        """
        scanned = len(self.text)
        self.text += text
        if not ended and not self._due(text, scanned):
            return None
        final = ended and complete
        if scanned > _EAGER_LENGTH:
            self._attempts += 1
            self._tried_length = len(self.text)
        while self.syntaxes:
            try:
                return self._read(self.syntaxes[0], final)
            except UnfinishedValueError:
                if not final:
                    return None
                self.syntaxes.pop(0)
            except (NoCallError, MalformedValueError):
                self.syntaxes.pop(0)
        raise NoCallError

    def _due(self, text: str, scanned: int) -> bool:
        """Whether to parse now: the chunk may complete a call, or it is early enough to reject one."""
        if not self._balanced and self._balance.feed(text) is not None:
            self._balanced = True
            return True
        if scanned <= _EAGER_LENGTH or scanned < LONGEST_OPENING <= len(self.text):
            return True
        found = any(self.text.find(end, max(0, scanned - self._longest_end)) >= 0 for end in self._ends)
        if not found and self._balanced:
            found = any(char in text for char in "}])")
        return found and (self._attempts < _FREE_ATTEMPTS or len(self.text) > self._tried_length * 1.1)

    def _read(self, syntax: CallSyntax, final: bool) -> Reading:
        reading = syntax.read(self.text, self._tools, final)
        unmarked = syntax.offered_only and not self._marked
        if unmarked and not all(call.name in self._tools for call in reading.calls):
            raise NoCallError
        return reading


class ToolCallSplitter:
    """Splits a completion into text and tool calls.

    Text that only resembles a call is returned as text. White space and markers next to calls are dropped. Everything
    else is returned unchanged.

    Args:
        style: The model's syntaxes, and the functions on offer.
        count: Number of calls in the completion before this text.
    """

    def __init__(self, style: ToolCallFormat, count: int = 0) -> None:
        self.count = count
        """Number of calls in the completion so far."""
        self._format = style
        candidates = style.candidates
        self._anywhere = not style.syntaxes
        """Whether a bare call may begin any line, because the model has no syntax of its own."""
        self._by_opening: dict[str, list[CallSyntax]] = {}
        for syntax in candidates:
            for opening in syntax.openings:
                self._by_opening.setdefault(opening, []).append(syntax)
        # Of two markers at the same place the scanner finds the shorter one, so "[" would hide "[TOOL_CALLS]".
        openings = list(self._by_opening)
        for short in openings:
            if any(opening != short and opening.startswith(short) for opening in openings):
                del self._by_opening[short]
        self._around = frozenset(marker for syntax in candidates for marker in syntax.around)
        self._bare = frozenset(
            opening
            for syntax in candidates
            if syntax.bare
            for opening in syntax.openings
            if opening in self._by_opening
        )
        self._bare_dropped = self._anywhere
        self._markers = frozenset({*self._by_opening, *self._around})
        self._scanner = MarkerScanner(self._markers)
        self._section: _Section | None = None
        self._pending = ""
        """White space and markers, dropped if a call follows."""
        self._marked = False
        """Whether ``_pending`` has a marker."""
        self._line_begins = True
        self._after_calls = False
        self._text_emitted = False
        self._failed = 0

    def feed(self, text: str) -> list[TextDelta | ToolCallDelta]:
        """Parse the next chunk of text and return the deltas that are certain so far."""
        deltas: list[TextDelta | ToolCallDelta] = []
        self._run(text, deltas)
        return deltas

    def flush(self, complete: bool = True) -> list[TextDelta | ToolCallDelta]:
        """Return the deltas of the buffered remainder, at the end of the text.

        Args:
            complete: Whether the model ended its answer itself. A truncated call is text.
        """
        deltas: list[TextDelta | ToolCallDelta] = []
        self._run("", deltas, ended=True, complete=complete)
        if self._pending and not (self._after_calls and self._marked):
            deltas.append(TextDelta(self._pending))
        self._pending = ""
        return deltas

    def _run(
        self, text: str, deltas: list[TextDelta | ToolCallDelta], ended: bool = False, complete: bool = True
    ) -> None:
        """Scan text and parse sections until all of the text is consumed."""
        while True:
            if self._section is not None:
                rest = self._read(self._section, text, deltas, ended, complete)
            elif text or ended:
                rest = self._scan(text, deltas, ended)
            else:
                return
            if not rest and (not ended or self._section is None):
                return
            text = rest

    def _scan(self, text: str, deltas: list[TextDelta | ToolCallDelta], ended: bool) -> str:
        """Emit text up to the next opening, and open a section there; return the text after the opening."""
        chunks = self._scanner.feed(text)
        if ended:
            chunks += self._unscanned()
        for index, chunk in enumerate(chunks):
            if not chunk.marker:
                self._emit_text(chunk.text, deltas)
                continue
            if self._opens(chunk.text):
                rest = "".join(following.text for following in chunks[index + 1 :])
                if not ended:
                    rest += "".join(following.text for following in self._scanner.flush())
                self._open_section(chunk.text)
                return rest
            if chunk.text in self._around:
                self._hold_marker(chunk.text)
            else:
                self._emit_text(chunk.text, deltas)
        if self._text_emitted and not self._bare_dropped and not self._after_calls and not ended:
            self._drop_bare_openings(deltas)
        return ""

    def _unscanned(self) -> list[ScannedText]:
        """Return the scanner's buffered text, except a truncated marker after a call."""
        chunks = self._scanner.flush()
        held = "".join(chunk.text for chunk in chunks)
        return [] if self._after_calls and any(marker.startswith(held) for marker in self._around) else chunks

    def _opens(self, marker: str) -> bool:
        if marker not in self._by_opening or self._failed >= MAX_FAILED_SECTIONS:
            return False
        if marker in self._bare and not self._bare_allowed():
            return any(not syntax.bare for syntax in self._by_opening[marker])
        return True

    def _bare_allowed(self) -> bool:
        return not self._text_emitted or self._after_calls or (self._anywhere and self._line_begins)

    def _open_section(self, opening: str) -> None:
        syntaxes = [syntax for syntax in self._by_opening[opening] if not syntax.bare or self._bare_allowed()]
        self._section = _Section(opening, syntaxes, self._format.tools, self._marked)

    def _read(
        self, section: _Section, text: str, deltas: list[TextDelta | ToolCallDelta], ended: bool, complete: bool
    ) -> str:
        """Feed the open section; return the text after it once it ends."""
        try:
            reading = section.feed(text, ended, complete)
            calls = [self._format.completed(call) for call in reading.calls] if reading is not None else []
        except NoCallError:
            return self._reject(section, deltas)
        if reading is None:
            if not ended:
                return ""
            return self._cut(section, deltas)
        for call in calls:
            deltas.append(ToolCallDelta(self.count, call))
            self.count += 1
        self._section, self._pending, self._marked = None, "", False
        self._after_calls = True
        return section.text[reading.end :]

    def _reject(self, section: _Section, deltas: list[TextDelta | ToolCallDelta]) -> str:
        """Close a section that is no call: its opening is text or a marker, the remainder is to be scanned again."""
        self._section = None
        self._failed += 1
        if section.opening in self._around:
            self._hold_marker(section.opening)
        else:
            self._emit_text(section.opening, deltas)
        return section.text[len(section.opening) :]

    def _cut(self, section: _Section, deltas: list[TextDelta | ToolCallDelta]) -> str:
        """Emit a truncated section as text, without the markers around it."""
        self._section = None
        text = section.text
        if section.opening not in self._bare:
            text = text if section.opening.endswith(("=", '"')) else text[len(section.opening) :].lstrip()
            self._pending = re.sub(r"\S.*", "", self._pending, flags=re.DOTALL) if self._marked else self._pending
        self._emit_text(text, deltas)
        return ""

    def _hold_marker(self, marker: str) -> None:
        self._pending += marker
        self._marked = True
        self._line_begins = True

    def _emit_text(self, text: str, deltas: list[TextDelta | ToolCallDelta]) -> None:
        """Emit text, but hold back the white space at its end."""
        if self._after_calls:
            # Some models write a superfluous bracket after a call, others a separator.
            text = text.lstrip(" \t\r\n;,}]" if not self._pending else None)
            if text and self._marked:
                self._pending, self._marked = "", False
        visible = text.rstrip()
        if visible:
            deltas.append(TextDelta(self._pending + visible))
            self._pending, self._marked, self._after_calls = "", False, False
            self._text_emitted = True
        self._pending += text[len(visible) :]
        if text:
            self._line_begins = "\n" in text[len(visible) :]

    def _drop_bare_openings(self, deltas: list[TextDelta | ToolCallDelta]) -> None:
        """Stop scanning for the openings that count only at the start of an answer."""
        held = "".join(chunk.text for chunk in self._scanner.flush())
        self._scanner = MarkerScanner(self._markers - self._bare)
        self._bare_dropped = True
        for chunk in self._scanner.feed(held):
            self._emit_text(chunk.text, deltas)


class ForcedCallSplitter:
    """Splits the one call that a grammar enforces into deltas, so that its arguments are streamed.

    Args:
        name: The function, when the text is its arguments; None when the text is an object with name and arguments.
        call_id: The id of the call.
    """

    def __init__(self, name: str | None, call_id: str) -> None:
        self._name = name
        self._id = call_id
        self._held = ""
        """Text before the arguments."""
        self._arguments = Balance()
        self._begun = False
        self._ended = False

    def feed(self, text: str) -> list[TextDelta | ToolCallDelta]:
        """Parse the next chunk of text and return the deltas that are certain so far."""
        if self._ended or not text:
            return []
        deltas: list[TextDelta | ToolCallDelta] = []
        if not self._begun:
            self._held += text
            name, text = self._opening()
            if name is None:
                return []
            self._begun = True
            deltas.append(ToolCallDelta(0, ToolCall(name, "", self._id)))
        end = self._arguments.feed(text) if self._name is None else None
        if end is not None:
            self._ended = True
            text = text[: len(text) - (self._arguments.read - end)]
        if text:
            deltas.append(ToolCallDelta(0, ToolCall("", text)))
        return deltas

    def flush(self, complete: bool = True) -> list[TextDelta | ToolCallDelta]:
        """Return the text of a completion that ended before its call began."""
        return [TextDelta(self._held)] if self._held and not self._begun else []

    def _opening(self) -> tuple[str | None, str]:
        """Return the name and the beginning of the arguments; None and an empty text before both are known."""
        if self._name is not None:
            return self._name, self._held
        opening = _FORCED_OPENING.match(self._held)
        return (json.loads(opening[1]), self._held[opening.end() :]) if opening is not None else (None, "")


_FORCED_OPENING = re.compile(r"""\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)""")
