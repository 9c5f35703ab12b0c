"""A tokenizer in SentencePiece's own form, for the families whose code reads that: trained in a tenth of a second."""

import functools
import io
from pathlib import Path

import sentencepiece
from models.tiny_models import CORPUS

_PIECES = 420
"""All bytes among them."""


@functools.cache
def _trained(special: tuple[str, ...]) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=written,
        vocab_size=_PIECES,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=list(special),
        minloglevel=2,
    )
    return written.getvalue()


class PieceTokenizer:
    """What ``tiny_vision`` asks of a tokenizer.

    Args:
        special: Tokens that stand for themselves.
    """

    def __init__(self, special: tuple[str, ...]) -> None:
        self._model = _trained(("<|endoftext|>", "<|im_start|>", "<|im_end|>", *special))
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)

    def token_to_id(self, token: str) -> int:
        """Return the number of a token."""
        return int(self._processor.piece_to_id(token))

    def get_vocab(self) -> dict[str, int]:
        """Return the numbers of all tokens."""
        return {self._processor.id_to_piece(index): index for index in range(self._processor.get_piece_size())}

    def save(self, path: str) -> None:
        """Write it beside where other tokenizers are written."""
        Path(path).with_name("tokenizer.model").write_bytes(self._model)
