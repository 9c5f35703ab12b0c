"""Reaching the Hugging Face tokenizer inside mlx-lm's wrapper or a processor, and what it must not keep."""

from typing import Any


def unwrapped(tokenizer: Any) -> Any:  # noqa: ANN401 - transformers has no types to name
    """Return the Hugging Face tokenizer of mlx-lm's wrapper; any other tokenizer is returned as it is.

    The wrapper adds behaviour of its own to some calls.
    """
    inner = getattr(tokenizer, "_tokenizer", None)
    # The Rust tokenizer inside a Hugging Face tokenizer goes by the same name.
    return inner if hasattr(inner, "apply_chat_template") else tokenizer


def keep_no_words(tokenizer: Any) -> None:  # noqa: ANN401
    """Have a tokenizer, or that of a processor, not remember the words it has split.

    tokenizers 0.23 remembers them for each thread, until the thread ends: not until the tokenizer does, so that a
    server would keep words of every model it ever had in memory. Without, it needs a sixth more time for a prompt,
    of which there is little: half a millisecond for 2,000 tokens.
    """
    inner = unwrapped(getattr(tokenizer, "tokenizer", tokenizer))
    pieces: Any = getattr(getattr(inner, "backend_tokenizer", None), "model", None)
    if hasattr(pieces, "_resize_cache"):
        pieces._resize_cache(0)
