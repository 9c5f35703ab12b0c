"""Images of EmbeddingGemma 2: a bidirectional network that reads them beside text, by mlx-vlm's image processor.

mlx-vlm's whole processor also reads films, for which it needs packages that images do not.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_vlm.models.embedding_gemma2.image_processing_embedding_gemma2 import EmbeddingGemma2ImageProcessor
from PIL import Image

from mlxk.adapters.mlx.embedding.encoding import EncodedPicture, ImageTokens
from mlxk.domain.errors import ValidationError

_MARKS = {"boi_token_id": 255_999, "image_token_id": 258_880, "eoi_token_id": 258_882}
"""The tokens before, in and after an image, where the config does not state them."""


class GemmaImages(ImageTokens):
    """Makes the tokens and the pixels of an image.

    Args:
        config: Of the model.
        stated: The image processor's part of its ``processor_config.json``.
    """

    def __init__(self, config: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
        self._begin, self._inside, self._end = (int(config.get(name, usual)) for name, usual in _MARKS.items())
        self._processor = EmbeddingGemma2ImageProcessor(**stated)

    def looked_at(self, picture: EncodedPicture) -> tuple[list[int], dict[str, mx.array]]:
        image = picture.image
        pixels = Image.frombytes("RGB", (image.width, image.height), image.pixels)
        try:
            found = self._processor.preprocess([pixels])
        except (ValueError, TypeError, ZeroDivisionError) as error:
            fault = f"the model's processor cannot take this image of {image.width} by {image.height} pixels"
            hint = "It may be too narrow for the model."
            raise ValidationError.in_field(picture.place, fault, hint=hint) from error
        count = int(found["num_soft_tokens_per_image"][0])
        media = {name: mx.array(found[name]) for name in ("pixel_values", "image_position_ids")}
        return [self._begin, *[self._inside] * count, self._end], media
