"""Examples of training data, in one form for all kinds of lines. The trainer encodes them as tokens."""

import enum
import posixpath

import attrs

from mlxk.domain.generation.conversation import Conversation


class ExampleKind(enum.Enum):
    """Kinds of examples; values name the fields of their lines."""

    CHAT = "messages"
    COMPLETION = "prompt and completion"
    TEXT = "text"
    PAIR = "chosen and rejected"


@attrs.frozen
class NamedImage:
    """An image of an example, by reference."""

    reference: str
    """Path, relative to the folder of the data until ``Example.beside`` resolves it; or a ``data:`` URL."""
    place: str = attrs.field(default="", eq=False)
    """Path of the field with the reference, for messages."""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return "in the line" if self.is_content else f"'{self.reference}'"

    @property
    def is_content(self) -> bool:
        """Whether the reference is a ``data:`` URL."""
        return self.reference[:5].lower() == "data:"


ExamplePart = str | NamedImage
"""A part of a message's content."""


@attrs.frozen
class Example:
    """One line of training data."""

    kind: ExampleKind
    line: int
    """Line number in the file, from 1."""
    conversation: Conversation = attrs.field(factory=lambda: Conversation(()))
    """The messages, also of a prompt and its completion; empty for an example of text."""
    learned: tuple[int, ...] = ()
    """Indices of the assistant's messages to learn."""
    text: str = ""
    """The text of an example of text; empty for all others."""
    parts: tuple[tuple[ExamplePart, ...], ...] = ()
    """For each message its text and images, empty for a message without images; empty if no message has any."""
    rejected: str | None = None
    """The worse answer of a pair, whose better answer is the last message; None for all other kinds."""
    unknown: tuple[str, ...] = ()
    """Names of ignored fields."""

    @property
    def asked(self) -> Conversation:
        """The conversation without its last message, the answer."""
        return attrs.evolve(self.conversation, messages=self.conversation.messages[:-1])

    @property
    def answer(self) -> str:
        """The last answer; empty for text."""
        return self.conversation.messages[-1].content if self.conversation.messages else ""

    @property
    def content(self) -> tuple[object, ...]:
        """Key for comparison with other examples: everything that is trained."""
        return self.conversation, self.text, self.parts, self.rejected

    @property
    def question(self) -> tuple[object, ...]:
        """Key for comparison with other examples: everything before the last answer."""
        return self.asked, self.parts

    @property
    def images(self) -> tuple[NamedImage, ...]:
        """Its images, in order."""
        return tuple(part for message in self.parts for part in message if isinstance(part, NamedImage))

    def beside(self, folder: str) -> "Example":
        """Return the example with absolute paths of its images.

        Args:
            folder: Absolute path of the folder that the paths are relative to.
        """

        def resolved(part: ExamplePart) -> ExamplePart:
            if isinstance(part, str) or part.is_content:
                return part
            return attrs.evolve(part, reference=posixpath.normpath(posixpath.join(folder, part.reference)))

        return attrs.evolve(self, parts=tuple(tuple(map(resolved, message)) for message in self.parts))

    @property
    def worse(self) -> "Example":
        """The example of a pair with the rejected answer as its last message."""
        messages = self.conversation.messages
        answer = attrs.evolve(messages[-1], content=self.rejected or "", tool_calls=(), reasoning="")
        return attrs.evolve(
            self, conversation=attrs.evolve(self.conversation, messages=(*messages[:-1], answer)), rejected=None
        )
