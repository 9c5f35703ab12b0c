"""Grammars: what the text of an answer must look like.

Owns the kinds a request may ask for and the checks that need no model; compiling one for a model's tokens, and refusing
what cannot be compiled, is the text generator's work.
"""

import enum
import json

import attrs

from mlxk.domain.errors import ValidationError

MAX_GRAMMAR_CHARACTERS = 256 * 1024
"""Longest text of a grammar."""


class GrammarKind(enum.Enum):
    """How a grammar is written; values are the words for it in messages."""

    JSON_SCHEMA = "JSON schema"
    JSON_OBJECT = "JSON object"
    REGEX = "regular expression"
    CHOICE = "choice"


@attrs.frozen
class Grammar:
    """What an answer must match, from its first character to its last."""

    kind: GrammarKind
    text: str
    """The schema; the expression; the choices as a JSON array of strings; empty for any JSON object."""
    field: str | None = attrs.field(default=None, eq=False)
    """Which field of a request it comes from, for messages; None when there is none to name."""
    parts: tuple["Grammar", ...] = attrs.field(default=(), eq=False)
    """What it was put together from, so that the part at fault can be named when the whole cannot be used."""

    @classmethod
    def json_schema(cls, text: str, field: str | None = None, parts: tuple["Grammar", ...] = ()) -> "Grammar":
        """An answer that is JSON and valid against a schema, given as JSON text."""
        return cls(GrammarKind.JSON_SCHEMA, text, field, parts)

    @classmethod
    def json_object(cls) -> "Grammar":
        """An answer that is any JSON object."""
        return cls(GrammarKind.JSON_OBJECT, "")

    @classmethod
    def regex(cls, text: str) -> "Grammar":
        """An answer that a regular expression matches as a whole; no look-around, no back-references."""
        return cls(GrammarKind.REGEX, text)

    @classmethod
    def choice(cls, options: tuple[str, ...]) -> "Grammar":
        """An answer that is one of some strings."""
        return cls(GrammarKind.CHOICE, json.dumps(options))

    def validate(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ValidationError: The text is too long or is not what its kind says.
        """
        if len(self.text) > MAX_GRAMMAR_CHARACTERS:
            raise self.refused(f"is too long: at most {MAX_GRAMMAR_CHARACTERS} characters (got {len(self.text)})")
        if self.kind is GrammarKind.JSON_SCHEMA:
            schema = self._parsed()
            if schema is not True and not isinstance(schema, dict):
                raise self.refused("must be a JSON object, or true to allow anything")
        elif self.kind is GrammarKind.CHOICE:
            options = self._parsed()
            if not isinstance(options, list) or not options or not all(o and isinstance(o, str) for o in options):
                raise self.refused("must be a list of at least one string, none of them empty")

    def refused(self, fault: str) -> ValidationError:
        """Return the failure of a grammar that cannot be used.

        Args:
            fault: What is wrong with it, such as ``is too long``.
        """
        if self.field is None:
            return ValidationError(f"The {self.kind.value} {fault}")
        hint = "Correct what is named, or leave it out and check the answer instead."
        return ValidationError.in_field(self.field, f"the {self.kind.value} {fault}", hint=hint)

    def _parsed(self) -> object:
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise self.refused(f"is not valid JSON: {error}") from error
        except RecursionError as error:
            raise self.refused("is nested too deeply") from error


def is_json(text: str) -> bool:
    """Whether a text is a whole JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
