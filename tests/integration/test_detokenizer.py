"""Streamed text equals the tokenizer's own decoding of all tokens."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder

_CORPUS = [
    "The quick brown fox, it isn't lazy. Grüße aus Köln! 世界 😀 naïve",
    "Hello world  two spaces\n\tand tabs",
] * 3
_TEXTS = [
    "Hi 😀 Grüße 世界 end",
    " leading space",
    "  two leading, two trailing  ",
    "👩‍👩‍👧‍👦 family, ﷽ ✔️ 한국어 ไทย",
    "line\n\n\n  indented\ttab <think>\nyes</think> é",
    "",
    " ",
]


def _byte_level(sequence: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()]) if sequence else decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("世 界"), AddedToken("ĠÀÿ")])
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _sentencepiece(strip: bool) -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    pieces = ["▁", "▁The", "▁Gr", "e", "n", "d", "▁▁", "\n", "ü", "世", "▁end", "h", "i", "a", "l", "o", "▁Hi", "s"]
    vocabulary.update({piece: 257 + index for index, piece in enumerate(pieces)})
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    tokenizer.add_tokens([AddedToken("<think>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _metaspace() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


class _BytesDecodedWhole:
    """A tokenizer without the tokenizers library: one token a byte."""

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


_KINDS = {
    "byte level": _byte_level(),
    "byte level in a sequence": _byte_level(sequence=True),
    "sentencepiece, first space stripped": _sentencepiece(strip=True),
    "sentencepiece, first space kept": _sentencepiece(strip=False),
    "metaspace": _metaspace(),
    "word piece": _word_piece(),
}
_SPELLS_BYTES = [name for name in _KINDS if name.startswith(("byte", "sentence"))]


def _streamed(decoder: TokenDecoder, ids: Iterable[int]) -> list[str]:
    stream = decoder.stream()
    return [*(stream.feed(token) for token in ids), stream.flush()]


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("text", _TEXTS)
def test_text_streams_as_it_decodes(kind: str, text: str) -> None:
    tokenizer = _KINDS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = _streamed(TokenDecoder(tokenizer), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if kind.startswith("byte"):
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_tokens_stream_as_they_decode(kind: str, data: st.DataObject) -> None:
    tokenizer = _KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), max_size=24))
    whole = tokenizer.decode(ids)
    streamed = "".join(_streamed(TokenDecoder(tokenizer), ids))
    if kind.startswith("sentencepiece") and "\ufffd" in whole:
        # Its decoder replaces a whole run of bytes when one of them is malformed; complete characters are kept here.
        spelt = b"".join(TokenDecoder(tokenizer).spell(token) for token in ids).decode("utf-8", "replace")
        whole = spelt.removeprefix(" ") if "stripped" in kind else spelt
    assert streamed == whole


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12).map(str.encode), st.binary(max_size=3))
def test_a_tokenizer_that_only_decodes_streams_too(text: bytes, tail: bytes) -> None:
    ids = list(text + tail)
    pieces = _streamed(TokenDecoder(_BytesDecodedWhole()), ids)
    assert "".join(pieces) == (text + tail).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", _SPELLS_BYTES)
def test_a_character_comes_out_whole_and_as_soon_as_it_is(kind: str) -> None:
    tokenizer = _KINDS[kind]
    backend = tokenizer.backend_tokenizer
    spellings = {TokenDecoder(tokenizer).spell(token): token for token in range(backend.get_vocab_size())}
    ids = [spellings[bytes([byte])] for byte in "a😀世ü".encode()]
    expected = ["a", "", "", "", "😀", "", "", "世", "", "ü", ""]
    assert _streamed(TokenDecoder(tokenizer), ids) == expected


@pytest.mark.parametrize("kind", _SPELLS_BYTES)
def test_a_character_cut_in_half_ends_as_a_replacement(kind: str) -> None:
    tokenizer = _KINDS[kind]
    decoder = TokenDecoder(tokenizer)
    spellings = {decoder.spell(token): token for token in range(len(tokenizer))}
    ids = [spellings[bytes([byte])] for byte in "😀".encode() + b"\xe4\xb8"]
    assert _streamed(decoder, ids) == ["", "", "", "😀", "", "", "\ufffd"]


def test_tokens_that_do_not_exist_are_silent() -> None:
    for tokenizer in _KINDS.values():
        decoder = TokenDecoder(tokenizer)
        assert decoder.spell(10**6) == b""
        assert "".join(_streamed(decoder, [10**6] * 40)) == ""


def test_the_decoder_of_mlx_lm_s_wrapper_is_that_of_its_tokenizer() -> None:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    tokenizer = _KINDS["byte level"]
    ids = tokenizer.encode(_TEXTS[1])
    assert "".join(_streamed(TokenDecoder(TokenizerWrapper(tokenizer)), ids)) == tokenizer.decode(ids)


def test_a_tokenizer_with_a_decoding_of_its_own_is_asked() -> None:
    from mlx_lm.tokenizer_utils import NewlineTokenizer, TokenizerWrapper

    plain = _byte_level()
    plain.add_tokens(["<n>"])
    tokenizer = NewlineTokenizer(tokenizer_object=plain.backend_tokenizer, clean_up_tokenization_spaces=False)
    ids = tokenizer.encode("one\ntwo 😀\n", add_special_tokens=False)
    assert "".join(_streamed(TokenDecoder(TokenizerWrapper(tokenizer)), ids)) == "one\ntwo 😀\n"


@pytest.mark.parametrize("kind", _KINDS)
def test_the_work_is_linear_without_a_single_newline(kind: str) -> None:
    tokenizer = _KINDS[kind]
    ids = list(tokenizer.encode("Hello Grüße 😀 end", add_special_tokens=False))
    decoder, seconds = TokenDecoder(tokenizer), []
    for size in (2_000, 16_000):
        start = time.process_time()
        _streamed(decoder, (ids * size)[:size])
        seconds.append(time.process_time() - start)
    assert seconds[1] < 24 * max(seconds[0], 0.005)
