"""The front matter of a model card (``README.md``): the few facts people state about a model.

Owns reading the subset of YAML that model cards use: ``key: value``, ``key: [a, b]`` and block lists, all at the first
level. Anything nested deeper is passed over. The prose of a card is nobody's business here.
"""

from collections.abc import Mapping

import attrs

MAX_CARD_BYTES = 64 * 1024
"""How much of a card is read; front matter comes first and is short."""

Scalar = str | tuple[str, ...]


@attrs.frozen
class ModelCard:
    """The facts in a card's front matter."""

    fields: Mapping[str, Scalar] = attrs.field(factory=dict)
    """Key to text, or to texts for a list."""

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the values of a key as a list, whichever way they were written; empty when it is absent."""
        value = self.fields.get(key, ())
        return (value,) if isinstance(value, str) else value

    @property
    def license(self) -> str | None:
        """The license's identifier; several are joined with commas."""
        return ", ".join(self.texts("license")) or None

    @property
    def made_for_mlx(self) -> bool:
        """Whether the card says that the weights are MLX's."""
        return "mlx" in self.texts("library_name") or any(tag.lower() == "mlx" for tag in self.texts("tags"))


def read_card(data: bytes) -> ModelCard:
    """Read a card's front matter; whatever the bytes are, the answer is a card and never an exception."""
    lines = data.decode("utf-8", errors="replace").lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return ModelCard()
    fields: dict[str, Scalar] = {}
    key = ""
    for line in lines[1:]:
        stripped = line.strip()
        if line.rstrip() in {"---", "..."}:
            return ModelCard(fields)
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.startswith("- ") and key:
            existing = fields.get(key)
            fields[key] = (*(existing if isinstance(existing, tuple) else ()), _text(stripped[2:]))
        elif line[0] not in " \t-":
            key = _read_pair(line, fields)
        elif line[0] in " \t" and not fields.get(key):
            key = ""  # a nested mapping: its lists are not this key's
    return ModelCard()


def _read_pair(line: str, fields: dict[str, Scalar]) -> str:
    """Add ``key: value`` to the fields and return the key when a block list may follow, else an empty text."""
    key, colon, rest = line.partition(":")
    if not colon:
        return ""
    key, value = _text(key), rest.strip()
    if value.startswith("["):
        items = value.partition("]")[0][1:].split(",")
        fields[key] = tuple(text for text in map(_text, items) if text)
        return ""
    fields[key] = _text(value)
    return "" if fields[key] else key


def _text(raw: str) -> str:
    """Return a scalar without quotes and trailing comment."""
    raw = raw.strip()
    if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "\"'":
        return raw[1:-1]
    return raw.partition(" #")[0].rstrip() if not raw.startswith("#") else ""
