"""Start the answers to a client's request with images or sound in it, now or earlier in the conversation.

Owns what a model gets to see: everything, as long as the last message shows no more than one chunk; otherwise one chunk
after the other, each with the system prompt and nothing else, so that neither memory nor attention is shared. A text
model gets to know that there were images. Every image keeps its number through the conversation. Sound is played in the
turn it was sent in.
"""

from collections.abc import Iterator, Mapping, Sequence

import attrs

from mlxk.application.incoming_message import IncomingMessage
from mlxk.application.policy import require_vision
from mlxk.application.ports.image_reader import ImageReader
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.text_streams import ChunkedStream, DescribedChunk
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.application.use_cases.serve_text import ServeText
from mlxk.domain.errors import ParameterNotSupportedError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.image_table import Chunk, ShownImage, chunks, numbers, without_tables
from mlxk.domain.generation.media import DEFAULT_CHUNK, MAX_CHUNK, EncodedImage, check_chunk, check_together
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import Capability


@attrs.frozen
class ServeImages:
    """Answers requests with images or sound."""

    serve_text: ServeText
    images: ImageReader
    facts: bool = True
    """Whether people and the model are told what the photos say about themselves."""

    def __call__(
        self,
        model: ServedModel,
        request: GenerationRequest,
        sent: Sequence[IncomingMessage],
        chunk: int = DEFAULT_CHUNK,
        alternatives: int = 1,
    ) -> tuple[TextStream, ...]:
        """Start the answers.

        Args:
            model: As the catalogue found it.
            request: What is asked; its conversation without the images and sounds.
            sent: The messages of that conversation.
            chunk: Images of the last message that the model sees together.
            alternatives: Answers wanted.

        Raises:
            ValidationError: An image cannot be read, or they are too large.
            CapabilityError: The last message shows images to a model that cannot look at them.
            ParameterNotSupportedError: Several answers about several chunks are wanted.
            MlxkError: See ``ServeText``.
        """
        check_chunk(chunk)
        asked = _last_shown(sent)
        if not model.description.can(Capability.VISION):
            if asked:
                require_vision(model.description)
            return self.serve_text(model, [_about(request, map(_told_of, sent))], alternatives)
        check_together([len(image.data) for each in sent for image in each.images], "messages")
        named_by = numbers(turn for each in sent for turn in _turns(each))
        if len(asked) <= chunk:
            return self._whole(model, request, sent, named_by, alternatives)
        if alternatives > 1:
            raise ParameterNotSupportedError.in_field(
                "n",
                "there is one answer to more images than are shown together",
                hint=f"Leave n out, or show up to {MAX_CHUNK} together with chunk.",
            )
        described = self._chunk_by_chunk(model, request, sent, chunks(self._shown(asked, named_by), chunk))
        return (ChunkedStream(next(described), described),)

    def _whole(
        self,
        model: ServedModel,
        request: GenerationRequest,
        sent: Sequence[IncomingMessage],
        named_by: Mapping[str, int],
        alternatives: int,
    ) -> tuple[TextStream, ...]:
        """Show the whole conversation; the table tells of the images that are new."""
        messages = [self._message(each, named_by) for each in sent]
        streams = self.serve_text(model, [_about(request, messages)], alternatives)
        asked = _last_shown(sent)
        if not asked or request.settings.grammar is not None:
            return streams
        table = Chunk(self._shown(asked, named_by))
        return tuple(ChunkedStream(DescribedChunk(table, stream), iter(())) for stream in streams)

    def _chunk_by_chunk(
        self, model: ServedModel, request: GenerationRequest, sent: Sequence[IncomingMessage], parts: Sequence[Chunk]
    ) -> Iterator[DescribedChunk]:
        opening = [each.message for each in sent if each.message.role is Role.SYSTEM]
        said = [part for part in sent[-1].parts if not isinstance(part, EncodedImage)]
        for part in parts:
            pictures = [self.images.decode(shown.image) for shown in part.images]
            asked = _about(request, [*opening, part.message([*pictures, *said])])
            (stream,) = self.serve_text(model, [asked])
            yield DescribedChunk(part, stream)

    def _message(self, sent: IncomingMessage, named_by: Mapping[str, int]) -> Message:
        """Return a message as the model gets it: shown anew, and answers without our tables."""
        if sent.message.role is Role.ASSISTANT:
            return attrs.evolve(sent.message, content=without_tables(sent.message.content))
        if not sent.images:
            return sent.played
        parts = [self.images.decode(part) if isinstance(part, EncodedImage) else part for part in sent.parts]
        return Chunk(self._shown(sent.images, named_by)).message(parts)

    def _shown(self, images: Sequence[EncodedImage], named_by: Mapping[str, int]) -> tuple[ShownImage, ...]:
        return tuple(
            ShownImage(named_by[image.digest], image, self.images.read_exif(image) if self.facts else None)
            for image in images
        )


def _last_shown(sent: Sequence[IncomingMessage]) -> tuple[EncodedImage, ...]:
    """Return what the last message shows: nothing when it is no user's."""
    return sent[-1].images


def _turns(sent: IncomingMessage) -> tuple[str | EncodedImage, ...]:
    """Return what gives images their numbers: those of a user, and the tables in an answer."""
    return (sent.message.content,) if sent.message.role is Role.ASSISTANT else sent.images


def _about(request: GenerationRequest, messages: "Iterator[Message] | Sequence[Message]") -> GenerationRequest:
    tools = request.prompt.tools if isinstance(request.prompt, Conversation) else ()
    return attrs.evolve(request, prompt=Conversation(tuple(messages), tools))


def _told_of(sent: IncomingMessage) -> Message:
    """Return a message for a text model, which is told that there were images."""
    played = sent.played
    if not sent.images:
        return played
    told = f"[{len(sent.images)} image(s) were attached]"
    parts = (*played.parts, told) if played.parts else ()
    return attrs.evolve(played, content="\n\n".join(filter(None, (played.content, told))), parts=parts)
