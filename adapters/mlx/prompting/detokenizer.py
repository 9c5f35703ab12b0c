"""Token ids to text, one token at a time, and access to the Hugging Face tokenizer below the libraries' wrappers."""

import codecs
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol


def unwrapped(tokenizer: Any) -> Any:  # noqa: ANN401 - transformers has no types to name
    """Return the Hugging Face tokenizer of mlx-lm's wrapper; any other tokenizer is returned as it is.

    The wrapper adds behaviour of its own to some calls.
    """
    inner = getattr(tokenizer, "_tokenizer", None)
    # The Rust tokenizer inside a Hugging Face tokenizer goes by the same name.
    return inner if hasattr(inner, "apply_chat_template") else tokenizer


def disable_word_cache(tokenizer: Any) -> None:  # noqa: ANN401
    """Have a tokenizer, or that of a processor, not remember the words it has split.

    tokenizers 0.23 remembers them for each thread, until the thread ends: not until the tokenizer does, so that a
    server would keep words of every model it ever had in memory. Without, it needs a sixth more time for a prompt,
    of which there is little: half a millisecond for 2,000 tokens.
    """
    inner = unwrapped(getattr(tokenizer, "tokenizer", tokenizer))
    pieces: Any = getattr(getattr(inner, "backend_tokenizer", None), "model", None)
    if hasattr(pieces, "_resize_cache"):
        pieces._resize_cache(0)


_SPIECE = "\u2581"
_REPLACEMENT = "\ufffd"
_PATIENCE = 16
"""Tokens a window may hold back; no character is spelt with more, so text that long is not an unfinished one."""


class TextTokenizer(Protocol):
    """What is used of a tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of some tokens, special ones included."""


class Detokenizer(Protocol):
    """The text of one sequence of tokens. The pieces, joined, are the tokenizer's decoding of all of them.

    Where tokens spell bytes that are no valid UTF-8, each malformed part is one U+FFFD and complete characters beside
    it stay whole; SentencePiece's own decoder throws those away.
    """

    def feed(self, token: int) -> str:
        """Return the text that this token completes, never half a character; often empty or more than one token's."""

    def flush(self) -> str:
        """Return what is left when the tokens have ended: a replacement character for a character cut in half."""


class TokenDecoder:
    """Decodes the tokens of one tokenizer; shared by all its requests.

    Args:
        tokenizer: A tokenizer as mlx-lm or transformers loads it.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids)
        self._spell: Callable[[int], bytes] | None = None
        self._strips_first_space = False
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

    def stream(self) -> Detokenizer:
        """Return a detokenizer for one new sequence."""
        if self._spell is None:
            return _WindowDetokenizer(self._decode)
        return _ByteDetokenizer(self._spell, self._strips_first_space)

    def spell(self, token: int) -> bytes:
        """Return the bytes one token stands for inside a text: possibly part of a character, empty if unknown."""
        if self._spell is not None:
            return self._spell(token)
        return self._decode([token]).encode()


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
    """Compares the decoding of the last tokens with and without the newest one; work and memory a token are bounded."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._told = 0
        """How many tokens of the window have had their text returned; they stay as context."""
        self._context = ""
        """The decoding of those."""

    def feed(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        waiting = len(self._window) - self._told < _PATIENCE
        return "" if text.endswith(_REPLACEMENT) and waiting else self._tell(text)

    def flush(self) -> str:
        return self._tell(self._decode(self._window))

    def _tell(self, text: str) -> str:
        known = text.startswith(self._context)
        new = text[len(self._context) :] if known else self._decode(self._window[self._told :])
        if new:
            self._window = self._window[self._told :]
            self._told, self._context = len(self._window), self._decode(self._window)
        elif len(self._window) - self._told >= _PATIENCE:
            del self._window[self._told :]
        return new


class _Spelling:
    """Remembers the bytes of each token that was asked for."""

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
    {"type": "Replace", "pattern": {"String": _SPIECE}, "content": " "},
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
    """A decoder of the tokenizers library; pickling is how it tells its description without the whole vocabulary."""

    def __getstate__(self) -> bytes: ...


def _steps(decoder: _Decoder | None) -> list[dict[str, object]]:
    """The decoder's description as the tokenizers library serialises it, sequences flattened."""
    if decoder is None:
        return []
    description = json.loads(decoder.__getstate__())
    steps: Sequence[dict[str, object]] = description.get("decoders", [description])
    return [{"type": "ByteLevel"} if step["type"] == "ByteLevel" else dict(step) for step in steps]


def _byte_level() -> Callable[[str], bytes]:
    """GPT-2's spelling: printable Latin-1 characters are themselves, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    table.update({chr(0x100 + index): byte for index, byte in enumerate(list(others))})

    def convert(name: str) -> bytes:
        # A token with any other character, an added one for instance, stands for itself.
        return bytes(table[char] for char in name) if table.keys() >= set(name) else name.encode()

    return convert


def _byte_fallback(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            pass
    return name.replace(_SPIECE, " ").encode()
