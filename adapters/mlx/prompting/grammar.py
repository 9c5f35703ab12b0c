"""Constrained decoding: llguidance computes the mask of allowed tokens on the host, and MLX applies it.

Compiles and caches grammars for a tokenizer, and has the logits processor that applies one to a sequence. It needs no
Metal kernel and works the same on a CPU.

Cost: compiling takes milliseconds, in the caller's thread. While decoding, a constrained sequence waits for its last
token before the next step can be built, and computes a mask of one bit a token.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

from mlxk.adapters.mlx.library_imports import import_failure
from mlxk.adapters.mlx.prompting.detokenizer import byte_level_name, unwrapped
from mlxk.adapters.mlx.prompting.json_schemas import enforceable
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.grammar import Grammar, GrammarKind

CACHED_GRAMMARS = 64
"""Compiled grammars cached for each tokenizer; the least recently used is evicted first."""

_WHITE_SPACE = r"\x20|\x0A\x20{0,24}"
"""Whitespace in JSON: one space, or a newline with indentation. Small models would emit whitespace endlessly."""

_STATE = "\n<state>"

_MESSAGE_LENGTH = 400
"""Characters of llguidance's message that are quoted."""

AnswerBegins = Callable[[int], bool]
"""Called with every generated token until it returns True; the grammar applies from the next token on."""


class CallOpenings:
    """An alternative to a grammar: a tool call in the model's own syntax.

    The first token of the answer decides. When it begins the opening of a call, only tokens that complete an opening
    are allowed, and then every token.

    Args:
        openings: The texts that begin a call, none of them empty.
        vocabulary: Token ids by token text, in byte-level tokenizers with one character a byte.
    """

    def __init__(self, openings: Sequence[str], vocabulary: Mapping[str, int]) -> None:
        self._rests = list(openings)
        """The rest of each opening that is still possible."""
        self._vocabulary = vocabulary
        self._rests_after: dict[int, list[str]] = {}
        """For each allowed token, the rests of the openings after it."""
        self.chosen = False
        """Whether the answer begins like a call."""
        self.free = False
        """Whether an opening is complete, so that every token is allowed."""

    def allowed(self) -> Iterable[int]:
        """Return the tokens that begin or continue an opening."""
        if not self._rests_after:
            for rest in self._rests:
                for length in range(1, len(rest) + 1):
                    self._allow(rest[:length], rest[length:])
                    self._allow(byte_level_name(rest[:length]), rest[length:])
                if self.chosen:
                    # A token may hold the end of an opening and further text; not as the first token of an answer.
                    names = (rest, byte_level_name(rest))
                    for text in [each for each in self._vocabulary if each.startswith(names)]:
                        self._allow(text, "")
        return self._rests_after.keys()

    def _allow(self, text: str, rest: str) -> None:
        token = self._vocabulary.get(text)
        if token is not None:
            self._rests_after.setdefault(token, []).append(rest)

    def advance(self, token: int) -> None:
        """Consume the next token, one of ``allowed``."""
        self._rests, self._rests_after = self._rests_after.get(token, []), {}
        self.chosen, self.free = True, "" in self._rests or not self._rests


class GrammarConstraint:
    """The logits processor of one sequence; used by one thread.

    Call it for each token, in order, with the tokens so far and the logits of the next one. When the grammar is
    complete and allows no further text, only the model's end tokens are allowed. It never raises: when llguidance
    fails, ``error`` has the reason, and again only the end tokens are allowed.
    """

    def __init__(
        self,
        matcher: Any,  # noqa: ANN401 - llguidance's
        words: int,
        ends: Iterable[int],
        begins: AnswerBegins | None = None,
        prompt_tokens: int | None = None,
        calls: CallOpenings | None = None,
    ) -> None:
        self.error: str | None = None
        """Why the text may not match the grammar; None without an error."""
        self._matcher = matcher
        self._mask = np.zeros((1, words), np.int32)
        self._bytes = self._mask.view(np.uint8)
        self._address = self._mask.ctypes.data
        self._ends = sorted(ends)
        self._begins = begins
        self._seen = prompt_tokens
        self._calls = calls

    @property
    def complete(self) -> bool:
        """Whether the text so far matches the grammar and may end here."""
        return self.error is None and self._begins is None and bool(self._matcher.is_accepting())

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return the logits, shape [1, V], with every token that is not allowed at minus infinity."""
        count = tokens.size
        if self._seen is not None and count > self._seen:
            # Reading the array's memory takes a fiftieth of the time of slicing it in MLX.
            values: Any = tokens
            for token in memoryview(values)[self._seen :].tolist():
                self._advance(token)
        self._seen = count
        if self._begins is not None or (self._calls is not None and self._calls.free):
            return logits
        allowed = self._allowed(logits.shape[-1])
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def _advance(self, token: int) -> None:
        if self._begins is not None:
            if self._begins(token):
                self._begins = None
        elif self._calls is not None:
            self._choose(self._calls, token)
        elif not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _choose(self, calls: CallOpenings, token: int) -> None:
        """Decide by the first token between the grammar and a tool call."""
        if calls.free:
            return
        if not calls.chosen and (token not in calls.allowed() or self._matcher.validate_tokens([token]) == 1):
            self._calls = None
            self._matcher.consume_token(token)
            self._check()
        else:
            calls.advance(token)

    def _allowed(self, width: int) -> Any:  # noqa: ANN401 - a numpy array, shape [1, width]
        if self._calls is not None and self._calls.chosen:
            self._mask[:] = 0
        elif self.error is None:
            self._matcher.unsafe_compute_mask_ptr(self._address, self._mask.nbytes)
            self._check()
        if self.error is not None:
            self._mask[:] = 0
            for token in self._ends:
                self._bytes[0, token // 8] |= 1 << (token % 8)
        for token in self._calls.allowed() if self._calls is not None else ():
            self._bytes[0, token // 8] |= 1 << (token % 8)
        # Logits beyond the tokenizer's vocabulary, which pad that of the model, get zeros.
        bits = np.unpackbits(self._bytes, axis=1, count=width, bitorder="little")
        return bits.view(np.bool_)

    def _check(self) -> None:
        if self._matcher.is_error():
            # The further lines of the message quote the text.
            self.error = str(self._matcher.get_error()).partition("\n")[0][:_MESSAGE_LENGTH]


class CompiledGrammar:
    """A grammar for one tokenizer; used for any number of sequences, from any thread."""

    def __init__(self, matcher: Any, words: int, ends: frozenset[int]) -> None:  # noqa: ANN401
        self._matcher = matcher
        self._words = words
        self._ends = ends

    def constrain(
        self,
        begins: AnswerBegins | None = None,
        prompt_tokens: int | None = None,
        calls: CallOpenings | None = None,
    ) -> GrammarConstraint:
        """Return the constraint of one sequence.

        Args:
            begins: Detects where the grammar begins to apply; None for the first token.
            prompt_tokens: Number of prompt tokens among the tokens of each call; the first call consumes those after
                them, so that a sequence can be continued. None for all tokens of the first call.
            calls: Tool calls that the answer may be instead; None without any.
        """
        return GrammarConstraint(self._matcher.deep_copy(), self._words, self._ends, begins, prompt_tokens, calls)


class GrammarCompiler:
    """Compiles grammars for one model's tokenizer; used from any thread.

    Args:
        tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself. Converted at the first grammar, which takes
            about a second for a large vocabulary.
        ends: Returns the end-of-sequence tokens, at least one; called at the first grammar.
        capacity: Number of compiled grammars to cache.
    """

    def __init__(self, tokenizer: object, ends: Callable[[], Iterable[int]], capacity: int = CACHED_GRAMMARS) -> None:
        self._tokenizer = tokenizer
        self._read_ends = ends
        self._capacity = capacity
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        return frozenset(self._read_ends())

    @functools.cached_property
    def token_ids(self) -> Mapping[str, int]:
        """Token ids by token text, in byte-level tokenizers with one character a byte."""
        vocabulary: Mapping[str, int] = unwrapped(self._tokenizer).get_vocab()
        return vocabulary

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar, or return it from the cache.

        Raises:
            ValidationError: The grammar is malformed, or llguidance does not support it; the message has the reason.
            CapabilityError: llguidance cannot use the model's tokenizer.
            BackendNotInstalledError: llguidance is not installed.
            ExecutionError: llguidance cannot be imported.
        """
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer, self._ends)
        compiled = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > self._capacity:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar; where a composed one fails, raise the error of the part at fault."""
        try:
            return self._compile_one(grammar)
        except ValidationError:
            for part in grammar.parts:
                self._compile_one(part)
            raise

    def _compile_one(self, grammar: Grammar) -> CompiledGrammar:
        translated = _translated(grammar)
        try:
            matcher = _llguidance().LLMatcher(self._vocabulary, translated, log_level=0)
        except ValueError as error:
            raise _refusal(grammar, str(error)) from error
        # The error of a grammar that allows no first token shows when the first mask is computed.
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        if trial.is_error():
            raise _refusal(grammar, trial.get_error())
        return CompiledGrammar(matcher, (self._vocabulary.vocab_size + 31) // 32, self._ends)


def _llguidance() -> ModuleType:
    """Import the library at the first grammar: requests without a grammar work without it."""
    try:
        import llguidance.hf
    except ImportError as error:
        raise import_failure(error, "Holding an answer to a grammar", "llguidance") from error
    library: ModuleType = llguidance
    return library


def _vocabulary(tokenizer: object, ends: frozenset[int]) -> Any:  # noqa: ANN401
    library = _llguidance()
    try:
        return library.hf.from_tokenizer(unwrapped(tokenizer), eos_token=sorted(ends))
    except (ValueError, RuntimeError, TypeError) as error:
        raise CapabilityError(
            f"The model's tokenizer cannot be held to a grammar ({_one_line(str(error))})."
        ) from error


def _translated(grammar: Grammar) -> str:
    """Return the grammar in llguidance's notation.

    Raises:
        ValidationError: llguidance cannot express it.
    """
    library = _llguidance()
    grammar.validate()
    schema = enforceable(grammar) if grammar.kind is GrammarKind.JSON_SCHEMA else '{"type": "object"}'
    # Overrides need a schema object; the empty one allows anything, too.
    schema = "{}" if schema.strip() == "true" else schema
    try:
        if grammar.kind is GrammarKind.CHOICE:
            return str(library.grammar_from("choice", grammar.text))
        return str(library.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITE_SPACE}))
    except ValueError as error:
        raise _refusal(grammar, str(error)) from error


def _refusal(grammar: Grammar, explanation: str) -> ValidationError:
    # The error of a failed start ends with the parser's state.
    return grammar.refused(f"cannot be used: {_one_line(explanation.partition(_STATE)[0])}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE_LENGTH]
