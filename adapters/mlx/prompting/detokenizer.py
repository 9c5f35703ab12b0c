"""Detokenization, one token at a time, and access to the Hugging Face tokenizer below the libraries' wrappers."""

import codecs
import copy
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol


def unwrapped(tokenizer: Any) -> Any:  # noqa: ANN401 - transformers has no types to name
    """Return the Hugging Face tokenizer of mlx-lm's wrapper; any other tokenizer is returned as it is.

    The wrapper adds behaviour of its own to some calls.
    """
    inner = getattr(tokenizer, "_tokenizer", None)
    # The Rust tokenizer inside a Hugging Face tokenizer has the same attribute name.
    return inner if hasattr(inner, "apply_chat_template") else tokenizer


def disable_word_cache(tokenizer: Any) -> None:  # noqa: ANN401
    """Disable the word cache of a tokenizer, or of a processor's tokenizer.

    tokenizers 0.23 has one cache a thread, which is freed with the thread, not with the tokenizer: a server would keep
    the words of every model it ever loaded. Without the cache tokenizing takes a sixth longer, about half a millisecond
    for 2,000 tokens in all.
    """
    inner = unwrapped(getattr(tokenizer, "tokenizer", tokenizer))
    model: Any = getattr(getattr(inner, "backend_tokenizer", None), "model", None)
    if hasattr(model, "_resize_cache"):
        model._resize_cache(0)


_SPACE_MARKER = "\u2581"
_REPLACEMENT = "\ufffd"
_MAX_PENDING = 16
"""Tokens without returned text in a window; no character has more, so that longer text is not an incomplete one."""


class TextTokenizer(Protocol):
    """The interface used of a tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of some tokens, special ones included."""


class Detokenizer(Protocol):
    """Decodes one sequence incrementally; the returned texts, joined, are the tokenizer's decoding of all tokens.

    Where tokens are bytes of invalid UTF-8, each malformed part becomes one U+FFFD and complete characters beside it
    remain; SentencePiece's own decoder drops those.
    """

    def feed(self, token: int) -> str:
        """Return the text that this token completes, in full characters; often empty, or of several tokens."""

    def flush(self) -> str:
        """Return the remaining text after the last token: U+FFFD for an incomplete character."""


class TokenDecoder:
    """Decodes the tokens of one tokenizer; shared by all its sequences.

    Args:
        tokenizer: A tokenizer as mlx-lm or transformers loads it.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids)
        self._spell: Callable[[int], bytes] | None = None
        self._strips_first_space = False
        self._silent: int | None = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or _decodes_by_itself(tokenizer):
            return
        self._decode = lambda ids: str(backend.decode(ids, skip_special_tokens=False))
        steps = _steps(backend.decoder)
        if steps == [{"type": "ByteLevel"}]:
            self._spell = _Spelling(backend.id_to_token, _byte_level())
        elif steps[:3] == _SENTENCEPIECE and steps[3:] in ([], [_STRIP]):
            self._spell = _Spelling(backend.id_to_token, _byte_fallback)
            self._strips_first_space = bool(steps[3:])

    def without(self, token: int | None) -> "TokenDecoder":
        """Return it for answers that begin with a token which is no part of them; None is no token."""
        found = copy.copy(self)
        found._silent = token
        return found

    def stream(self) -> Detokenizer:
        """Return a detokenizer for a new sequence."""
        if self._spell is None:
            return _WindowDetokenizer(self._decode)
        return _ByteDetokenizer(self._spell, self._strips_first_space)

    def answer(self) -> Detokenizer:
        """Return a detokenizer for an answer, of which a first token may be no part."""
        plain = self.stream()
        return plain if self._silent is None else _Beginning(self._silent, plain)

    def spell(self, token: int) -> bytes:
        """Return the bytes of one token within a text: possibly part of a character, empty if unknown."""
        if self._spell is not None:
            return self._spell(token)
        return self._decode([token]).encode()


class _Beginning:
    """Leaves out a token at the beginning of a sequence, as often as it comes there."""

    def __init__(self, silent: int, plain: Detokenizer) -> None:
        self._silent: int | None = silent
        self._plain = plain

    def feed(self, token: int) -> str:
        if token == self._silent:
            return ""
        self._silent = None
        return self._plain.feed(token)

    def flush(self) -> str:
        return self._plain.flush()


class _ByteDetokenizer:
    def __init__(self, spell: Callable[[int], bytes], strips_first_space: bool) -> None:
        self._spell = spell
        self._strip = strips_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._stripped(self._utf8.decode(self._spell(token)))

    def flush(self) -> str:
        return self._stripped(self._utf8.decode(b"", True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class _WindowDetokenizer:
    """Decodes a window of the last tokens with and without the newest one; time and memory a token are bounded."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._returned = 0
        """Tokens at the window's beginning whose text was returned; they remain as context."""
        self._context = ""
        """The text of those."""

    def feed(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        waiting = len(self._window) - self._returned < _MAX_PENDING
        return "" if text.endswith(_REPLACEMENT) and waiting else self._advance(text)

    def flush(self) -> str:
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        known = text.startswith(self._context)
        new = text[len(self._context) :] if known else self._decode(self._window[self._returned :])
        if new:
            self._window = self._window[self._returned :]
            self._returned, self._context = len(self._window), self._decode(self._window)
        elif len(self._window) - self._returned >= _MAX_PENDING:
            del self._window[self._returned :]
        return new


class _Spelling:
    """Caches the bytes of each token."""

    def __init__(self, name: Callable[[int], str | None], convert: Callable[[str], bytes]) -> None:
        self._name = name
        self._convert = convert
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        spelling = self._known.get(token)
        if spelling is None:
            name = self._name(token)
            spelling = self._known[token] = self._convert(name) if name is not None else b""
        return spelling


_SENTENCEPIECE: list[dict[str, object]] = [
    {"type": "Replace", "pattern": {"String": _SPACE_MARKER}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP: dict[str, object] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _decodes_by_itself(tokenizer: TextTokenizer) -> bool:
    """Whether a tokenizer class does more in ``decode`` than to call the tokenizers library."""
    kind = type(unwrapped(tokenizer))
    homes = [getattr(getattr(kind, name, None), "__module__", "") for name in ("decode", "_decode")]
    return homes != ["transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"]


class _Decoder(Protocol):
    """A decoder of the tokenizers library; its pickle is its description without the vocabulary."""

    def __getstate__(self) -> bytes: ...


def _steps(decoder: _Decoder | None) -> list[dict[str, object]]:
    """The decoder's description as the tokenizers library serialises it, sequences flattened."""
    if decoder is None:
        return []
    description = json.loads(decoder.__getstate__())
    steps: Sequence[dict[str, object]] = description.get("decoders", [description])
    return [{"type": "ByteLevel"} if step["type"] == "ByteLevel" else dict(step) for step in steps]


@functools.cache
def _byte_table() -> dict[str, int]:
    """Return GPT-2's spelling: printable Latin-1 characters are themselves, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(0x100 + index): byte for index, byte in enumerate(list(others))}


def byte_level_name(text: str) -> str:
    """Return the name of a text in a vocabulary of bytes."""
    names = {byte: char for char, byte in _byte_table().items()}
    return "".join(names[byte] for byte in text.encode())


def _byte_level() -> Callable[[str], bytes]:
    table = _byte_table()

    def convert(name: str) -> bytes:
        # A token with any other character, such as an added token, is its own text.
        return bytes(table[char] for char in name) if table.keys() >= set(name) else name.encode()

    return convert


def _byte_fallback(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            pass
    return name.replace(_SPACE_MARKER, " ").encode()
