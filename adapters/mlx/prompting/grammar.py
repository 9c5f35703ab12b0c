"""Grammar-constrained output: llguidance computes on the host which tokens may come next, MLX drops the others.

Owns compiling grammars for one tokenizer, keeping the last ones, and the logits processor that holds one answer to its
grammar. No Metal kernel is involved, so it works the same on a CPU.

Costs: compiling takes milliseconds and runs in the caller's thread, not in the one that owns MLX. While answering, a
constrained row must know its last token before the next step can be built, and computes a mask of one bit a token.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from mlxk.adapters.mlx.library_imports import import_failure
from mlxk.adapters.mlx.prompting.detokenizer import Detokenizer, unwrapped
from mlxk.adapters.mlx.prompting.json_schemas import enforceable
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.generation.grammar import Grammar, GrammarKind

CACHED_GRAMMARS = 64
"""Compiled grammars kept for each tokenizer, least recently used goes first."""

_WHITE_SPACE = r"\x20|\x0A\x20{0,24}"
"""Between the parts of JSON: one space, or a new line and its indentation. Small models would go on with blanks."""

_STATE = "\n<state>"

_MESSAGE_LENGTH = 400
"""Characters of llguidance's explanation that are passed on."""

AnswerBegins = Callable[[int], bool]
"""Told every token of an answer until it returns True: the grammar holds from the next token on."""


class GrammarConstraint:
    """Holds one answer to its grammar; a logits processor, used by one thread.

    Call it for each token, in order, with the tokens so far and the logits of the next one. When the grammar is
    fulfilled and nothing may follow, only the model's end tokens are left. It never raises: when llguidance gives up,
    ``error`` says why, and only the end tokens are left too.

    Made by ``CompiledGrammar.constrain``.
    """

    def __init__(
        self,
        matcher: Any,  # noqa: ANN401 - llguidance's
        words: int,
        ends: Iterable[int],
        begins: AnswerBegins | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        import numpy

        self.error: str | None = None
        """Why the answer cannot be trusted to match; None while all is well."""
        self._numpy = numpy
        self._matcher = matcher
        self._mask = numpy.zeros((1, words), numpy.int32)
        self._bytes = self._mask.view(numpy.uint8)
        self._address = self._mask.ctypes.data
        self._ends = sorted(ends)
        self._begins = begins
        self._seen = prompt_tokens

    @property
    def complete(self) -> bool:
        """Whether the answer so far matches the grammar and may end here."""
        return self.error is None and self._begins is None and bool(self._matcher.is_accepting())

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return the logits, shape [1, V], with every token that may not come next at minus infinity."""
        count = tokens.size
        if self._seen is not None and count > self._seen:
            # Reading the array's own memory costs a fiftieth of slicing it in MLX.
            values: Any = tokens
            for token in memoryview(values)[self._seen :].tolist():
                self._advance(token)
        self._seen = count
        if self._begins is not None:
            return logits
        allowed = self._allowed(logits.shape[-1])
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def _advance(self, token: int) -> None:
        if self._begins is not None:
            if self._begins(token):
                self._begins = None
        elif not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _allowed(self, width: int) -> Any:  # noqa: ANN401 - a numpy array, shape [1, width]
        if self.error is None:
            self._matcher.unsafe_compute_mask_ptr(self._address, self._mask.nbytes)
            self._check()
        if self.error is not None:
            self._mask[:] = 0
            for token in self._ends:
                self._bytes[0, token // 8] |= 1 << (token % 8)
        # Zeroes stand for what the tokenizer does not know: rows of the model's output that pad its vocabulary.
        bits = self._numpy.unpackbits(self._bytes, axis=1, count=width, bitorder="little")
        return bits.view(self._numpy.bool_)

    def _check(self) -> None:
        if self._matcher.is_error():
            # What follows the first line tells the answer's text.
            self.error = str(self._matcher.get_error()).partition("\n")[0][:_MESSAGE_LENGTH]


class CompiledGrammar:
    """A grammar for one tokenizer; may be used for any number of answers, from any thread."""

    def __init__(self, matcher: Any, words: int, ends: frozenset[int]) -> None:  # noqa: ANN401
        self._matcher = matcher
        self._words = words
        self._ends = ends

    def constrain(self, begins: AnswerBegins | None = None, prompt_tokens: int | None = None) -> GrammarConstraint:
        """Return the constraint of one answer.

        Args:
            begins: Tells when the part of the answer begins that the grammar is about; None means at once.
            prompt_tokens: How many of the tokens that the constraint is called with precede the answer; those after
                them are read even at the first call, so an answer may be taken up in its middle. None means all
                tokens of the first call.
        """
        return GrammarConstraint(self._matcher.deep_copy(), self._words, self._ends, begins, prompt_tokens)


class GrammarCompiler:
    """Compiles grammars for one model's tokenizer; may be called from any thread.

    Args:
        tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself. Read at the first grammar, which takes about
            a second for a large vocabulary.
        ends: The tokens with which the model ends its turn, at least one.
        capacity: How many compiled grammars to keep.
    """

    def __init__(self, tokenizer: object, ends: Iterable[int], capacity: int = CACHED_GRAMMARS) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._capacity = capacity
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar, or return it from before.

        Raises:
            ValidationError: The grammar is malformed, or asks for what llguidance cannot do; its message says what.
            CapabilityError: The model's tokenizer cannot be constrained.
            BackendNotInstalledError: llguidance is not installed.
            ExecutionError: It is, and cannot be imported.
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
        """Compile a grammar; of one that was put together, the part at fault is refused."""
        try:
            return self._compile_one(grammar)
        except ValidationError:
            for part in grammar.parts:
                self._compile_one(part)
            raise

    def _compile_one(self, grammar: Grammar) -> CompiledGrammar:
        from llguidance import LLMatcher

        translated = _translated(grammar)
        try:
            matcher = LLMatcher(self._vocabulary, translated, log_level=0)
        except ValueError as error:
            raise _refusal(grammar, str(error)) from error
        # What cannot even begin shows only when the first token is wanted.
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        if trial.is_error():
            raise _refusal(grammar, trial.get_error())
        return CompiledGrammar(matcher, (self._vocabulary.vocab_size + 31) // 32, self._ends)


def answer_begins(detokenizer: Detokenizer, answer: OutputParser) -> AnswerBegins | None:
    """Return what tells when a model is done with reasoning and begins the answer itself.

    Args:
        detokenizer: A fresh one, for this purpose alone.
        answer: A fresh one too, knowing the model's reasoning format and the prompt's tail.

    Returns:
        None when the answer begins with the first token.
    """
    if answer.answering:
        return None

    def begins(token: int) -> bool:
        answer.feed(detokenizer.feed(token))
        return answer.answering

    return begins


def _vocabulary(tokenizer: object, ends: frozenset[int]) -> Any:  # noqa: ANN401
    try:
        import llguidance.hf
    except ImportError as error:
        raise import_failure(error, "Holding an answer to a grammar", "llguidance") from error
    try:
        return llguidance.hf.from_tokenizer(unwrapped(tokenizer), eos_token=sorted(ends))
    except (ValueError, RuntimeError, TypeError) as error:
        raise CapabilityError(
            f"The model's tokenizer cannot be held to a grammar ({_one_line(str(error))})."
        ) from error


def _translated(grammar: Grammar) -> str:
    """The grammar in llguidance's own notation; raises ValidationError for what cannot be written in it."""
    from llguidance import LLMatcher, grammar_from

    grammar.validate()
    schema = enforceable(grammar) if grammar.kind is GrammarKind.JSON_SCHEMA else '{"type": "object"}'
    # Options need an object to go with; this one allows anything, too.
    schema = "{}" if schema.strip() == "true" else schema
    try:
        if grammar.kind is GrammarKind.REGEX:
            return str(LLMatcher.grammar_from_regex(grammar.text))
        if grammar.kind is GrammarKind.CHOICE:
            return str(grammar_from("choice", grammar.text))
        return str(LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITE_SPACE}))
    except ValueError as error:
        raise _refusal(grammar, str(error)) from error


def _refusal(grammar: Grammar, explanation: str) -> ValidationError:
    # What follows the first line of a failure while running is the state of the parser.
    return grammar.refused(f"cannot be used: {_one_line(explanation.partition(_STATE)[0])}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE_LENGTH]
