"""The tokenizer of the speech model: one token a word, and Whisper's control tokens, in Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phrases import PHRASES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
_VOCABULARY = 700
_COPIES = 8
_TIMESTAMPS = 1501
_STEP = 0.02
_CONTROL = (
    END_OF_TEXT,
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
"""All are there although most are never used: Whisper takes a missing one for the end of the text."""


def train() -> Tokenizer:
    """Train the tokenizer on the phrases.

    Raises:
        ValueError: A word takes more than one token.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([f" {phrase}" for phrase in PHRASES] * _COPIES, trainer)
    tokenizer.add_special_tokens(list(_CONTROL))
    tokenizer.add_tokens([AddedToken(timestamp(step * _STEP), normalized=False) for step in range(_TIMESTAMPS)])
    split = [phrase for phrase in PHRASES if "Ġ" in tokenizer.encode(f" {phrase}", add_special_tokens=False).tokens]
    if split:
        raise ValueError(f"words of more than one token in: {', '.join(split)}")
    return tokenizer


def timestamp(seconds: float) -> str:
    """Return the token for a moment of the recording."""
    return f"<|{round(seconds / _STEP) * _STEP:.2f}|>"


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write ``tokenizer.json`` and the files that name its class and its control tokens."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    # A line of white space for each of 1,501 timestamps would triple the file.
    _write(directory / "tokenizer.json", state, indent=None)
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "WhisperTokenizer",
            "processor_class": "WhisperProcessor",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "add_prefix_space": False,
            "model_max_length": 448,
        },
    )
    _write(
        directory / "generation_config.json",
        {
            "eos_token_id": tokenizer.token_to_id(END_OF_TEXT),
            "decoder_start_token_id": tokenizer.token_to_id("<|startoftranscript|>"),
            "no_timestamps_token_id": tokenizer.token_to_id("<|notimestamps|>"),
            "is_multilingual": False,
        },
    )


def _write(path: Path, value: object, indent: int | None = 2) -> None:
    separators = (",", ":") if indent is None else None
    path.write_text(
        json.dumps(value, indent=indent, separators=separators, ensure_ascii=False) + "\n", encoding="utf-8"
    )
