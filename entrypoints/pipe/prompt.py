"""Reads a prompt from standard input and joins it with the prompt on the command line.

Input is bounded, so that an endless pipe ends in an error and not in exhausted memory.
"""

from collections.abc import Callable
from typing import BinaryIO

from mlxk.domain.errors import ValidationError

MAX_INPUT_BYTES = 64 * 1024 * 1024
"""More than any context window (about 16 million tokens), less than any machine's memory."""


def read_prompt(stdin: BinaryIO, words: str, note: Callable[[str], None]) -> str:
    """Return standard input, followed by a blank line and the words where there are any.

    Args:
        stdin: Read to its end. Bytes that are not UTF-8 are replaced.
        words: The prompt on the command line.
        note: Called with a message when bytes were replaced.

    Raises:
        ValidationError: The input is larger than ``MAX_INPUT_BYTES``.
    """
    data = stdin.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise ValidationError(
            f"standard input is larger than {MAX_INPUT_BYTES // 1024**2} MiB, more than any context window holds"
        )
    text = data.decode("utf-8", errors="replace")
    if "\ufffd" in text and b"\xef\xbf\xbd" not in data:
        note("run: standard input is not valid UTF-8; invalid bytes were replaced")
    return f"{text}\n\n{words}" if words else text
