"""Embedding models that take images: their prompts, image processors and networks, on mlx-vlm.

A prompt is assembled from token ids: of the template's control tokens, of texts, in which control tokens are not
recognized, and of the image, for which the model's processor makes pixels and placeholder tokens. No processor is given
a URL or a path.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx_vlm import utils
from mlx_vlm.models.embedding_gemma2.image_processing_embedding_gemma2 import EmbeddingGemma2ImageProcessor
from numpy.typing import NDArray
from PIL import Image

from mlxk.adapters.mlx.embedding.encoding import (
    Computed,
    EncodedInputs,
    ImagePrompt,
    InputNetwork,
    Prompts,
    as_rows,
    padded,
    require_window,
)
from mlxk.domain.embedding import EmbeddingRequest, EmbeddingSettings, ImageInput, InputKind, TokenIds, Truncation
from mlxk.domain.errors import Advice, CapabilityError, ContextLengthError, Remedy, ValidationError
from mlxk.domain.generation.media import DecodedImage


@attrs.frozen
class Text:
    """A part of a prompt in which control tokens are not recognized."""

    text: str


class ImagePlaceholder:
    """The position of the image in a prompt."""


Part = str | Text | ImagePlaceholder
"""A part of a prompt; in a plain string control tokens are recognized."""


@attrs.frozen
class Family:
    """The prompts of one family of models, and how its hidden states become vectors."""

    mark: str
    """The text that its processor replaces by the tokens of an image."""
    text: Callable[[str, EmbeddingSettings, Prompts], list[Part]]
    """Returns the prompt of a text."""
    image: Callable[[str, EmbeddingSettings, Prompts], list[Part]]
    """Returns the prompt of an image and the text given with it."""
    hidden: Callable[[Any, mx.array, Mapping[str, mx.array]], mx.array]
    """Computes the vectors of all tokens, shape (texts, length, dimensions), from the network, the token ids, and the
    processor's arrays for an image. Attention is causal, so that padding on the right has no effect."""
    per_token: bool
    """Whether the result is a vector for each token; otherwise it is that of the last token."""
    takes_instruction: bool = False
    takes_text_with_image: bool = False


def _chat(instruction: str, content: list[Part]) -> list[Part]:
    before: list[Part] = ["<|im_start|>system\n", Text(instruction), "<|im_end|>\n<|im_start|>user"]
    return [*before, *content, "<|im_end|>\n<|im_start|>assistant\n"]


_REPRESENT = "Represent the user's input."


def _qwen_instruction(settings: EmbeddingSettings, prompts: Prompts) -> str:
    if settings.instruction is None:
        return prompts.prefix(settings) or _REPRESENT
    stated = settings.instruction.strip()
    return stated if stated.endswith((".", "!", "?", ":")) else f"{stated}."


def _qwen_text(text: str, settings: EmbeddingSettings, prompts: Prompts) -> list[Part]:
    # The newline is part of the text: both may be merged to one token.
    return _chat(_qwen_instruction(settings, prompts), [Text(f"\n{text}")])


def _qwen_image(text: str, settings: EmbeddingSettings, prompts: Prompts) -> list[Part]:
    return _chat(_qwen_instruction(settings, prompts), ["\n", ImagePlaceholder(), Text(text)])


def _late_text(filling: str) -> Callable[[str, EmbeddingSettings, Prompts], list[Part]]:
    """Return the text prompt of a ColPali model: a query is followed by ten filling tokens, which get vectors too."""

    def parts(text: str, settings: EmbeddingSettings, prompts: Prompts) -> list[Part]:
        if settings.prompt_name is None and settings.kind is InputKind.DOCUMENT:
            return [Text(prompts.document + text)]
        return [Text((prompts.prefix(settings) or "Query: ") + text), filling * 10]

    return parts


def _colqwen_image(_: str, settings: EmbeddingSettings, prompts: Prompts) -> list[Part]:
    return ["<|im_start|>user\n", ImagePlaceholder(), "Describe the image.<|im_end|><|endoftext|>"]


def _colidefics_image(_: str, settings: EmbeddingSettings, prompts: Prompts) -> list[Part]:
    return ["<|im_start|>User:", ImagePlaceholder(), "Describe the image.<end_of_utterance>\nAssistant:"]


def _qwen_hidden(network: Any, ids: mx.array, media: Mapping[str, mx.array]) -> mx.array:  # noqa: ANN401
    # The network keeps the positions of its last prompt, and would reuse them for a shorter one.
    network.language_model._position_ids = network.language_model._rope_deltas = None
    hidden: mx.array = network._last_hidden_state(ids, **media)
    return hidden


def _colqwen_hidden(network: Any, ids: mx.array, media: Mapping[str, mx.array]) -> mx.array:  # noqa: ANN401
    others = {name: value for name, value in media.items() if name != "pixel_values"}
    inputs = network.get_input_embeddings(ids, media.get("pixel_values"), **others)
    # The model was trained with positions of image patches by row and column; the network's own call numbers all tokens
    # consecutively.
    language = network.language_model.model
    hidden = language(None, inputs_embeds=inputs.inputs_embeds, position_ids=inputs.position_ids)
    projected: mx.array = network.custom_text_proj(hidden)
    return projected


def _colidefics_hidden(network: Any, ids: mx.array, media: Mapping[str, mx.array]) -> mx.array:  # noqa: ANN401
    projected: mx.array = network(ids, **media).text_embeds
    return projected


QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"

FAMILIES: Mapping[str, Family] = {
    "qwen3_vl_embedding": Family(
        QWEN_MARK,
        _qwen_text,
        _qwen_image,
        _qwen_hidden,
        per_token=False,
        takes_instruction=True,
        takes_text_with_image=True,
    ),
    "colqwen2_5": Family(QWEN_MARK, _late_text("<|endoftext|>"), _colqwen_image, _colqwen_hidden, per_token=True),
    "colidefics3": Family(
        "<image>", _late_text("<end_of_utterance>"), _colidefics_image, _colidefics_hidden, per_token=True
    ),
}
"""The families by architecture, in mlx-vlm's terms."""

_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask")
"""The processor's arrays that networks take."""


class PromptTokens:
    """Converts the parts of prompts to token ids.

    Args:
        processor: The model's.
        mark: The text that it replaces by the tokens of an image.
    """

    def __init__(self, processor: Any, mark: str) -> None:  # noqa: ANN401 - untyped
        self._processor = processor
        self._mark = mark

    def tokens(self, parts: Sequence[Part]) -> TokenIds:
        """Return the token ids of the parts, image placeholders left out; on one thread at a time."""
        ids: list[int] = []
        for part in parts:
            if not isinstance(part, ImagePlaceholder):
                text = part.text if isinstance(part, Text) else part
                ids += self._processor.tokenizer(
                    text, add_special_tokens=False, verbose=False, split_special_tokens=isinstance(part, Text)
                )["input_ids"]
        return tuple(ids)

    def image_tokens(self, image: DecodedImage, field: str) -> tuple[list[int], dict[str, mx.array]]:
        """Return the token ids of an image, and the network's keyword arguments for it; on the owner thread.

        Raises:
            ValidationError: The processor cannot take it.
        """
        inputs = _processed(
            image, field, lambda pixels: utils.prepare_inputs(self._processor, images=[pixels], prompts=self._mark)
        )
        media = {name: mx.array(inputs[name]) for name in _INPUTS if inputs.get(name) is not None}
        return np.array(inputs["input_ids"]).reshape(-1).tolist(), media


_GEMMA_MARKS = {"boi_token_id": 255_999, "image_token_id": 258_880, "eoi_token_id": 258_882}
"""Default ids of the tokens before, in and after an image, by the config's names."""


class GemmaImages:
    """Prepares images for EmbeddingGemma 2.

    mlx-vlm's complete processor also handles video and requires further packages for it.

    Args:
        config: The model's.
        stated: The image processor's part of its ``processor_config.json``.
    """

    def __init__(self, config: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
        marks = (int(config.get(name, default)) for name, default in _GEMMA_MARKS.items())
        self._begin, self._inside, self._end = marks
        self._processor = EmbeddingGemma2ImageProcessor(**stated)

    def image_tokens(self, image: DecodedImage, field: str) -> tuple[list[int], dict[str, mx.array]]:
        """See ``PromptTokens.image_tokens``."""
        inputs = _processed(image, field, lambda pixels: self._processor.preprocess([pixels]))
        count = int(inputs["num_soft_tokens_per_image"][0])
        media = {name: mx.array(inputs[name]) for name in ("pixel_values", "image_position_ids")}
        return [self._begin, *[self._inside] * count, self._end], media


def _processed(
    image: DecodedImage, field: str, process: Callable[[Image.Image], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Run a processor on an image; raises as ``PromptTokens.image_tokens``."""
    pixels = Image.frombytes("RGB", (image.width, image.height), image.pixels)
    try:
        return process(pixels)
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        fault = f"the model's processor cannot take this image of {image.width} by {image.height} pixels"
        raise ValidationError.in_field(field, fault, hint="It may be too narrow for the model.") from error


class ImageNetwork(InputNetwork):
    """A network that embeds a text, an image, or an image with a text.

    Args:
        network: mlx-vlm's model.
        processor: The model's.
        family: The model's family.
        prompts: The model's prefixes.
        window: Size of the context window, tokens.
        vocabulary: Size of the vocabulary.
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - untyped
        processor: Any,  # noqa: ANN401 - untyped
        family: Family,
        prompts: Prompts,
        window: int,
        vocabulary: int,
    ) -> None:
        self._network = network
        self._prompt_tokens = PromptTokens(processor, family.mark)
        self._family = family
        self._prompts = prompts
        self._window = window
        self._vocabulary = vocabulary
        self._padding = int(processor.tokenizer.pad_token_id or 0)
        self._lock = threading.Lock()

    def encode(self, request: EmbeddingRequest) -> EncodedInputs:
        if request.settings.instruction is not None and not self._family.takes_instruction:
            raise CapabilityError.in_field("instruct", "this model takes no instruction")
        tokens: list[TokenIds] = []
        truncations, images = [], {}
        with self._lock:
            for index, each in enumerate(request.inputs):
                if isinstance(each, ImageInput):
                    images[index] = self._image_prompt(each, f"input[{index}]", request.settings)
                    tokens.append(())
                    continue
                ids, length = self._text(each, f"input[{index}]", request.settings)
                tokens.append(ids)
                if length > len(ids):
                    truncations.append(Truncation(index, length, len(ids)))
        return EncodedInputs(tuple(tokens), tuple(truncations), images)

    def compute(self, inputs: EncodedInputs, indices: Sequence[int]) -> list[Computed]:
        if indices[0] in inputs.images:
            return [self._embed_image(inputs.images[indices[0]])]
        texts = [inputs.tokens[index] for index in indices]
        ids, _ = padded(texts, self._padding)
        hidden = as_rows(self._family.hidden(self._network, mx.array(ids), {}))
        return [self._computed(rows[: len(text)]) for rows, text in zip(hidden, texts, strict=True)]

    def _computed(self, rows: NDArray[np.float32]) -> Computed:
        return Computed(rows if self._family.per_token else rows[-1], len(rows))

    def _embed_image(self, prompt: ImagePrompt) -> Computed:
        image_tokens, media = self._prompt_tokens.image_tokens(prompt.image, prompt.field)
        tokens = [*prompt.before, *image_tokens, *prompt.after]
        require_window(len(tokens), len(image_tokens), self._window, prompt.field)
        return self._computed(as_rows(self._family.hidden(self._network, mx.array([tokens]), media))[0])

    def _image_prompt(self, given: ImageInput, field: str, settings: EmbeddingSettings) -> ImagePrompt:
        if given.text and not self._family.takes_text_with_image:
            raise CapabilityError.in_field(field, "this model embeds an image without a text beside it")
        if not isinstance(given.image, DecodedImage):
            raise TypeError("the image is not decoded")
        parts = self._family.image(given.text, settings, self._prompts)
        middle = next(index for index, part in enumerate(parts) if isinstance(part, ImagePlaceholder))
        return ImagePrompt(
            given.image,
            self._prompt_tokens.tokens(parts[:middle]),
            self._prompt_tokens.tokens(parts[middle + 1 :]),
            field,
        )

    def _text(self, given: str | TokenIds, field: str, settings: EmbeddingSettings) -> tuple[TokenIds, int]:
        """Return the tokens of a text's prompt, truncated to the window, and their number before truncation.

        Raises:
            ValidationError: A given token is not in the vocabulary.
            ContextLengthError: There are too many tokens, and truncation is off or the prompt alone fills the window.
        """
        before: TokenIds
        after: TokenIds
        if not isinstance(given, str):
            wrong = next((token for token in given if not 0 <= token < self._vocabulary), None)
            if wrong is not None:
                raise ValidationError.in_field(field, f"{wrong} is none of this model's {self._vocabulary} tokens")
            before, content, after = (), given, ()
        else:
            parts = self._family.text(given, settings, self._prompts)
            last = max(index for index, part in enumerate(parts) if isinstance(part, Text))
            pieces = parts[:last], parts[last : last + 1], parts[last + 1 :]
            before, content, after = (self._prompt_tokens.tokens(piece) for piece in pieces)
        length, room = len(before) + len(content) + len(after), self._window - len(before) - len(after)
        if room < 1 or (len(content) > room and not settings.truncate):
            raise ContextLengthError(
                f"{field} has {length} tokens; the model reads {self._window}.",
                hint=Advice(Remedy.TRUNCATE_INPUT),
                detail={"prompt_tokens": length, "context_length": self._window},
            )
        return (*before, *content[:room], *after), length
