"""Reaching the Hugging Face tokenizer inside mlx-lm's wrapper, which adds behaviour of its own to some calls."""

from typing import Any


def unwrapped(tokenizer: Any) -> Any:  # noqa: ANN401 - transformers has no types to name
    """Return the Hugging Face tokenizer of mlx-lm's wrapper; any other tokenizer is returned as it is."""
    inner = getattr(tokenizer, "_tokenizer", None)
    # The Rust tokenizer inside a Hugging Face tokenizer goes by the same name.
    return inner if hasattr(inner, "apply_chat_template") else tokenizer
