"""Text from strangers, fit to stand in a line of a terminal.

Names and metadata of models are written by others. A model's answer and a transcript are not for this: they are data,
and are delivered as they are. JSON has its own way to write such characters.
"""

_ACTING = (*range(0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F))
_ISOLATES = range(0x2066, 0x206A)

_SHOWN = {number: ascii(chr(number))[1:-1] for number in (*_ACTING, *_ISOLATES)}
"""What moves the cursor, ends a line or turns the direction of writing, and how it is shown: as its number."""


def printable(text: str) -> str:
    """Return text in which characters that would do something on a terminal are shown by their number."""
    return text.translate(_SHOWN)
