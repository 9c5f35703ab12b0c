"""Streaming detokenization, and access to the Hugging Face tokenizer inside the libraries' wrappers."""

import codecs
import copy
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol


def unwrapped(tokenizer: Any) -> Any:  # noqa: ANN401 - transformers has no types to name
    """Return the Hugging Face tokenizer inside mlx-lm's wrapper, which changes some calls; others as they are."""
    inner = getattr(tokenizer, "_tokenizer", None)
    # The Rust tokenizer inside a Hugging Face tokenizer has the same attribute name.
    return inner if hasattr(inner, "apply_chat_template") else tokenizer


def disable_word_cache(tokenizer: Any) -> None:  # noqa: ANN401
    """Disable the word cache of a tokenizer, or of a processor's tokenizer.

    tokenizers 0.23 has one cache a thread, which is freed with the thread, not with the tokenizer: a server would keep
    the words of every model it ever loaded. Without the cache tokenizing takes a sixth longer: 2,000 tokens take about
    half a millisecond in all.
    """
    inner = unwrapped(getattr(tokenizer, "tokenizer", tokenizer))
    model: Any = getattr(getattr(inner, "backend_tokenizer", None), "model", None)
    if hasattr(model, "_resize_cache"):
        model._resize_cache(0)


_SPACE_MARKER = "\u2581"
_REPLACEMENT = "\ufffd"
_MAX_PENDING = 16
"""Maximum number of tokens in a window whose text is withheld; no character has more tokens."""


class TextTokenizer(Protocol):
    """The interface used of a tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of tokens, special ones included."""


class Detokenizer(Protocol):
    """Decodes one sequence incrementally; the returned texts, joined, equal the tokenizer's decoding of all tokens.

    In invalid UTF-8, each malformed part becomes one U+FFFD and complete characters beside it remain, which
    SentencePiece's own decoder drops.
    """

    def feed(self, token: int) -> str:
        """Return the text that this token completes, in whole characters: of no token, of one, or of several."""

    def flush(self) -> str:
        """Return the remaining text after the last token; an incomplete character becomes U+FFFD."""


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
            self._spell = _TokenBytes(backend.id_to_token, _byte_level())
        elif steps[:3] == _SENTENCEPIECE and steps[3:] in ([], [_STRIP]):
            self._spell = _TokenBytes(backend.id_to_token, _byte_fallback)
            self._strips_first_space = bool(steps[3:])

    def without(self, token: int | None) -> "TokenDecoder":
        """Return a decoder whose answers omit this token at their beginning; None omits nothing."""
        decoder = copy.copy(self)
        decoder._silent = token
        return decoder

    def stream(self) -> Detokenizer:
        """Return a detokenizer for a new sequence."""
        if self._spell is None:
            return _WindowDetokenizer(self._decode)
        return _ByteDetokenizer(self._spell, self._strips_first_space)

    def answer(self) -> Detokenizer:
        """Return a detokenizer for an answer; see ``without``."""
        plain = self.stream()
        return plain if self._silent is None else _LeadingTokenFilter(self._silent, plain)

    def spell(self, token: int) -> bytes:
        """Return the bytes of one token within a text: possibly a part of a character; empty for an unknown token."""
        if self._spell is not None:
            return self._spell(token)
        return self._decode([token]).encode()


class _LeadingTokenFilter:
    """Omits all repetitions of a token at the beginning of a sequence."""

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
    """Decodes a bounded window of the last tokens, and returns the text by which it grows."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._returned = 0
        """Tokens at the window's beginning whose text was returned; they remain as context."""
        self._context = ""
        """The text of these tokens."""

    def feed(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        may_be_incomplete = len(self._window) - self._returned < _MAX_PENDING
        return "" if text.endswith(_REPLACEMENT) and may_be_incomplete else self._advance(text)

    def flush(self) -> str:
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        extends = text.startswith(self._context)
        new = text[len(self._context) :] if extends else self._decode(self._window[self._returned :])
        if new:
            self._window = self._window[self._returned :]
            self._returned, self._context = len(self._window), self._decode(self._window)
        elif len(self._window) - self._returned >= _MAX_PENDING:
            del self._window[self._returned :]
        return new


class _TokenBytes:
    """Converts tokens to bytes, and caches them."""

    def __init__(self, name: Callable[[int], str | None], convert: Callable[[str], bytes]) -> None:
        self._name = name
        self._convert = convert
        self._cache: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        spelling = self._cache.get(token)
        if spelling is None:
            name = self._name(token)
            spelling = self._cache[token] = self._convert(name) if name is not None else b""
        return spelling


_SENTENCEPIECE: list[dict[str, object]] = [
    {"type": "Replace", "pattern": {"String": _SPACE_MARKER}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP: dict[str, object] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _decodes_by_itself(tokenizer: TextTokenizer) -> bool:
    """Whether a tokenizer class has its own ``decode``, which does more than calling the tokenizers library."""
    kind = type(unwrapped(tokenizer))
    modules = [getattr(getattr(kind, name, None), "__module__", "") for name in ("decode", "_decode")]
    return modules != ["transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"]


class _Decoder(Protocol):
    """A decoder of the tokenizers library; its pickled state is its description without the vocabulary."""

    def __getstate__(self) -> bytes: ...


def _steps(decoder: _Decoder | None) -> list[dict[str, object]]:
    """Return the decoder's steps as the tokenizers library serialises them."""
    if decoder is None:
        return []
    description = json.loads(decoder.__getstate__())
    steps: Sequence[dict[str, object]] = description.get("decoders", [description])
    return [{"type": "ByteLevel"} if step["type"] == "ByteLevel" else dict(step) for step in steps]


@functools.cache
def _byte_table() -> dict[str, int]:
    """Return GPT-2's bytes by character: printable Latin-1 is itself, the other bytes are characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(0x100 + index): byte for index, byte in enumerate(list(others))}


def byte_level_name(text: str) -> str:
    """Return a text as byte-level vocabularies spell it, with one character a byte."""
    names = {byte: char for char, byte in _byte_table().items()}
    return "".join(names[byte] for byte in text.encode())


def _byte_level() -> Callable[[str], bytes]:
    table = _byte_table()

    def convert(name: str) -> bytes:
        # A token with other characters, such as an added token, is plain text.
        return bytes(table[char] for char in name) if table.keys() >= set(name) else name.encode()

    return convert


def _byte_fallback(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            pass
    return name.replace(_SPACE_MARKER, " ").encode()
