"""The images of training data: read and decoded when they are needed, and rendered as those of a request."""

import base64
import binascii
import posixpath

import attrs

from mlxk.application.ports.media import ImageReader
from mlxk.application.ports.tuning import TrainingFiles
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, MessagePart
from mlxk.domain.generation.image_table import Chunk, ImageNumbers, ShownImage
from mlxk.domain.generation.media import MAX_IMAGE_BYTES, EncodedImage
from mlxk.domain.tuning.examples import Example, ExamplePart, NamedImage


@attrs.frozen
class ExampleImages:
    """Reads the images that training examples name; nothing is cached."""

    files: TrainingFiles
    reader: ImageReader

    def __call__(self, example: Example) -> Conversation:
        """Return the conversation of an example with its images, numbered as those of a request.

        Raises:
            ValidationError: An image is missing or damaged.
            BackendNotInstalledError: The format of an image needs a package that is not installed.
        """
        conversation, numbers = example.conversation, ImageNumbers()
        if not example.parts:
            return conversation
        messages = list(conversation.messages)
        for index, parts in enumerate(example.parts):
            if parts:
                encoded = [self.encoded(part) if isinstance(part, NamedImage) else part for part in parts]
                images = tuple(ShownImage(numbers.of(part), part) for part in encoded if isinstance(part, EncodedImage))
                messages[index] = Chunk(images).message([self._decoded(part) for part in encoded])
        return attrs.evolve(conversation, messages=tuple(messages))

    def check(self, image: NamedImage) -> str:
        """Decode an image, and return the digest of its file.

        Raises:
            ValidationError: The image is missing or damaged.
            BackendNotInstalledError: Its format needs a package that is not installed.
        """
        encoded = self.encoded(image)
        self.reader.decode(encoded)
        return encoded.digest

    def encoded(self, image: NamedImage) -> EncodedImage:
        """Return the file of an image, which is named by a path or held in a ``data:`` URL.

        Raises:
            ValidationError: The image is missing, too large or not an image.
        """
        if not image.is_content:
            data = self.files.image(image.reference, MAX_IMAGE_BYTES)
            return EncodedImage.of(data, image.place, posixpath.basename(image.reference))
        header, _, content = image.reference.partition(",")
        if not header.endswith(";base64"):
            raise ValidationError("holds its content in another form than base64")
        try:
            return EncodedImage.of(base64.b64decode(content, validate=True), image.place)
        except binascii.Error as error:
            raise ValidationError("is not base64") from error

    def _decoded(self, part: ExamplePart | EncodedImage) -> MessagePart:
        assert not isinstance(part, NamedImage)
        return self.reader.decode(part) if isinstance(part, EncodedImage) else part
