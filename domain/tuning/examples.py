"""Examples of training data: what one holds, whichever form its line had.

How it becomes tokens is the trainer's work.
"""

import enum
import posixpath

import attrs

from mlxk.domain.generation.conversation import Conversation


class ExampleKind(enum.Enum):
    """What a line holds; values are the names of its fields."""

    CHAT = "messages"
    COMPLETION = "prompt and completion"
    TEXT = "text"
    PAIR = "chosen and rejected"


@attrs.frozen
class NamedImage:
    """An image that an example shows, named by its file."""

    reference: str
    """The path, as seen from the folder of the data at first; or the content itself, as a URL of the kind ``data:``."""
    place: str = attrs.field(default="", eq=False)
    """The field that names it."""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return "in the line" if self.is_content else f"'{self.reference}'"

    @property
    def is_content(self) -> bool:
        """Whether the reference is the content itself."""
        return self.reference[:5].lower() == "data:"


ExamplePart = str | NamedImage
"""A part of a message's content."""


@attrs.frozen
class Example:
    """A line of training data."""

    kind: ExampleKind
    line: int
    """Its number in the file, from 1."""
    conversation: Conversation = attrs.field(factory=lambda: Conversation(()))
    """The messages, a prompt and its completion included; empty for text."""
    learned: tuple[int, ...] = ()
    """The indices of the answers that are to be learned."""
    text: str = ""
    """Of an example of text."""
    parts: tuple[tuple[ExamplePart, ...], ...] = ()
    """Of each message with images its parts, none of the others; empty without any images."""
    rejected: str | None = None
    """The worse answer, of a pair; the last message of the conversation is the better one."""
    unknown: tuple[str, ...] = ()
    """Fields that mean nothing here."""

    @property
    def asked(self) -> Conversation:
        """The conversation up to the last answer."""
        return attrs.evolve(self.conversation, messages=self.conversation.messages[:-1])

    @property
    def answer(self) -> str:
        """The last answer; empty for text."""
        return self.conversation.messages[-1].content if self.conversation.messages else ""

    @property
    def content(self) -> tuple[object, ...]:
        """What it teaches, whatever its line and its order of fields."""
        return self.conversation, self.text, self.parts, self.rejected

    @property
    def question(self) -> tuple[object, ...]:
        """What the last answer answers."""
        return self.asked, self.parts

    @property
    def images(self) -> tuple[NamedImage, ...]:
        """Its images, in order."""
        return tuple(part for message in self.parts for part in message if isinstance(part, NamedImage))

    def beside(self, folder: str) -> "Example":
        """Return it with the paths of its images as seen from the root, not from the folder that they are named from.

        Args:
            folder: Absolute.
        """

        def found(part: ExamplePart) -> ExamplePart:
            if isinstance(part, str) or part.is_content:
                return part
            return attrs.evolve(part, reference=posixpath.normpath(posixpath.join(folder, part.reference)))

        return attrs.evolve(self, parts=tuple(tuple(map(found, message)) for message in self.parts))

    @property
    def worse(self) -> "Example":
        """The example with its worse answer, of a pair."""
        messages = self.conversation.messages
        answer = attrs.evolve(messages[-1], content=self.rejected or "", tool_calls=(), reasoning="")
        return attrs.evolve(
            self, conversation=attrs.evolve(self.conversation, messages=(*messages[:-1], answer)), rejected=None
        )
