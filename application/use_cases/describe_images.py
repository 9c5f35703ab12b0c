"""Describe images: show them to a model in chunks, each with its facts, and tell who asked what was shown.

Owns the order and the isolation: one model for all chunks, each chunk a conversation of its own, and the next one
begins when its answer is asked for, so that no more images are in memory than a model sees together.
"""

from collections.abc import Callable, Iterator, Sequence

import attrs

from mlxk.application.policy import require_text_model, require_vision
from mlxk.application.ports.image_reader import ImageReader
from mlxk.application.text_streams import DescribedChunk
from mlxk.application.use_cases.generate_text import GenerateText, Question
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.image_table import Chunk, ShownImage
from mlxk.domain.generation.media import DEFAULT_CHUNK, DecodedImage, EncodedImage, check_chunk, check_together
from mlxk.domain.models.model import ModelDescription

ImageSource = Callable[[], EncodedImage]
"""Reads an image when it is its turn."""


@attrs.frozen
class Showing:
    """How to show images to a model."""

    prompt: str
    """What to ask about each chunk."""
    question: Question
    """How to ask: everything about a request but its conversation."""
    system: str | None = None
    chunk: int = DEFAULT_CHUNK
    """Images that the model sees together."""
    facts: bool = True
    """Whether people and the model are told what the photos say about themselves."""


@attrs.frozen
class SeenImage:
    """An image that is ready to be shown."""

    shown: ShownImage
    pixels: DecodedImage


@attrs.frozen
class DescribeImages:
    """Answers a prompt about images, and takes images in for conversations."""

    generate: GenerateText
    images: ImageReader

    def __call__(self, reference: str, sources: Sequence[ImageSource], showing: Showing) -> Iterator[DescribedChunk]:
        """Judge everything, then show chunk after chunk, each when it is asked for.

        Args:
            reference: The model, as the user typed it.
            sources: The images, at least one.
            showing: How.

        Raises:
            ValidationError: A setting is out of range, or an image cannot be read; also while iterating.
            CapabilityError, UnhealthyModelError, IncompatibleModelError: The model cannot look at images.
            MlxkError: See ``GenerateText``.
        """
        check_chunk(showing.chunk)
        showing.question.settings.validate()
        return self._described(self._describe(reference), sources, showing)

    def take_in(self, reference: str, sources: Sequence[ImageSource], first: int, facts: bool) -> tuple[SeenImage, ...]:
        """Read images that a conversation is going to show.

        Args:
            reference: The model, as the user typed it.
            sources: The images.
            first: The number of the first one in its conversation.
            facts: Whether the model is told what the photos say about themselves.

        Raises:
            ValidationError: An image cannot be read.
            CapabilityError, UnhealthyModelError, IncompatibleModelError: The model cannot look at images.
        """
        self._describe(reference)
        read = (source() for source in sources)
        return tuple(self._seen(self._shown(image, number, facts)) for number, image in enumerate(read, first))

    def _describe(self, reference: str) -> ModelDescription:
        description = self.generate.describe(self.generate.resolve(reference))
        require_text_model(description)
        require_vision(description)
        return description

    def _described(
        self, description: ModelDescription, sources: Sequence[ImageSource], showing: Showing
    ) -> Iterator[DescribedChunk]:
        count = -(-len(sources) // showing.chunk)
        for index in range(count):
            first = index * showing.chunk
            images = [source() for source in sources[first : first + showing.chunk]]
            check_together([len(image.data) for image in images], "--image")
            shown = tuple(self._shown(image, number, showing.facts) for number, image in enumerate(images, first + 1))
            yield self._ask(description, Chunk(shown, index + 1, count), showing)

    def _shown(self, image: EncodedImage, number: int, facts: bool) -> ShownImage:
        return ShownImage(number, image, self.images.read_exif(image) if facts else None)

    def _seen(self, shown: ShownImage) -> SeenImage:
        return SeenImage(shown, self.images.decode(shown.image))

    def _ask(self, description: ModelDescription, chunk: Chunk, showing: Showing) -> DescribedChunk:
        images = [self.images.decode(shown.image) for shown in chunk.images]
        opening = (Message(Role.SYSTEM, showing.system),) if showing.system else ()
        asked = Conversation((*opening, chunk.message([*images, showing.prompt])))
        question = attrs.evolve(showing.question, prompt=asked)
        return DescribedChunk(chunk, self.generate.start(description, question))
