"""The media of messages, decoded, with what is known of them, or a note in their place."""

from collections.abc import Sequence

import attrs

from mlxk.application.generation_input import IncomingMessage, IncomingPart, Recording, encoded_images
from mlxk.application.ports.media import AudioDecoder, ImageReader, VideoDecoder
from mlxk.domain.generation.conversation import Message, MessagePart, Role
from mlxk.domain.generation.image_table import Chunk, ImageNumbers, ShownImage, ShownVideo, without_tables
from mlxk.domain.generation.media import DEFAULT_AUDIO_PROMPT, EncodedImage, check_audio_length
from mlxk.domain.generation.video import EncodedVideo


@attrs.frozen
class MediaReaders:
    """Decodes the media of messages."""

    images: ImageReader
    audio: AudioDecoder
    videos: VideoDecoder
    exif: bool
    """Whether the user and the model get what images and clips say of how they were recorded."""

    def with_images(
        self, incoming: IncomingMessage, numbers: ImageNumbers, facts: bool
    ) -> tuple[Message, Chunk | None]:
        """Return a message with decoded media and without tables, and the chunk of its images and clips.

        Args:
            incoming: The message.
            numbers: Those of the conversation.
            facts: Whether what images and clips say of themselves is wanted.
        """
        message = incoming.message
        if message.role is Role.ASSISTANT:
            numbers.read(message.content)
            return attrs.evolve(message, content=without_tables(message.content)), None
        images = encoded_images(incoming)
        if not images and not incoming.videos:
            return self.without_images(incoming), None
        videos = tuple(self.shown_video(each, numbers.of_video(), facts=facts) for each in incoming.videos)
        chunk = Chunk(self.numbered(images, numbers, facts), videos=videos)
        frames = iter(each.read.video for each in videos)
        parts = [next(frames) if isinstance(part, EncodedVideo) else self.decoded(part) for part in incoming.parts]
        return chunk.message(parts), chunk

    def shown_video(self, video: EncodedVideo, number: int, *, facts: bool) -> ShownVideo:
        """Return a clip with its number and its frames, and with its facts where they are wanted."""
        read = self.videos.decode(video)
        if not (self.exif and facts):
            read = attrs.evolve(read, facts=attrs.evolve(read.facts, recorded=None))
        return ShownVideo(number, video, read)

    def without_images(self, incoming: IncomingMessage) -> Message:
        """Return a message with decoded audio, and a note in place of its images and clips."""
        message = incoming.message
        counts = {"image": len(incoming.images), "video": len(incoming.videos)}
        note = tuple(f"[{count} {kind}(s) were attached]" for kind, count in counts.items() if count)
        parts: tuple[MessagePart, ...] = ()
        if incoming.has_audio and incoming.parts:
            parts = tuple(self.decoded(part) for part in incoming.parts if not is_seen(part))
            parts = (*parts, *(() if message.content else (DEFAULT_AUDIO_PROMPT,)), *note)
        if not parts and not note:
            return message
        return attrs.evolve(message, content="\n\n".join(filter(None, (message.content, *note))), parts=parts)

    def decoded(self, part: IncomingPart) -> MessagePart:
        """Return a part of a message, decoded if it is a file."""
        if isinstance(part, Recording):
            audio = self.audio.decode(part.path, part.name)
            check_audio_length(audio, part.name)
            return audio
        if callable(part):
            part = part()
        if isinstance(part, EncodedVideo):
            return self.videos.decode(part).video
        return self.images.decode(part) if isinstance(part, EncodedImage) else part

    def numbered(self, images: Sequence[EncodedImage], numbers: ImageNumbers, facts: bool) -> tuple[ShownImage, ...]:
        """Return images with their numbers, and with their facts where they are wanted."""
        return tuple(self.shown(image, numbers.of(image), facts=facts) for image in images)

    def shown(self, image: EncodedImage, number: int, *, facts: bool) -> ShownImage:
        """Return an image with its number, and with its facts where they are wanted."""
        return ShownImage(number, image, self.images.read_exif(image) if self.exif and facts else None)


def is_seen(part: IncomingPart) -> bool:
    """Whether a part is an encoded image or clip."""
    return isinstance(part, EncodedImage | EncodedVideo) or callable(part)
