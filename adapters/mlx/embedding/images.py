"""Embedding models that take images: the prompts around them, and the networks of mlx-vlm that read both.

A prompt is put together of tokens: control tokens, texts, in which nothing is a control token, and the image, which the
model's own processor turns into pixels and tokens. No processor gets a URL or a path.
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
    """A part of a prompt in which nothing is a control token."""

    text: str


class ImagePlaceholder:
    """The place of the image in a prompt."""


Part = str | Text | ImagePlaceholder
"""A part of a prompt; a plain string may spell control tokens."""


@attrs.frozen
class Family:
    """How one family of models is prompted, and what becomes of its hidden states."""

    mark: str
    """The text that its processor replaces by the tokens of an image."""
    text: Callable[[str, EmbeddingSettings, Prompts], list[Part]]
    """Returns the prompt of a text."""
    image: Callable[[str, EmbeddingSettings, Prompts], list[Part]]
    """Returns the prompt of an image, with the text beside it."""
    hidden: Callable[[Any, mx.array, Mapping[str, mx.array]], mx.array]
    """Returns a vector of each token, of shape (texts, length, dimensions), from the network, the tokens, and what the
    processor made of an image. No token attends to a later one, so that padding on the right changes nothing."""
    several: bool
    """Whether there is a vector of each token; else that of the last one counts."""
    takes_instruction: bool = False
    takes_text_beside: bool = False


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
    # The newline belongs to the text, with which it may be one token.
    return _chat(_qwen_instruction(settings, prompts), [Text(f"\n{text}")])


def _qwen_image(text: str, settings: EmbeddingSettings, prompts: Prompts) -> list[Part]:
    return _chat(_qwen_instruction(settings, prompts), ["\n", ImagePlaceholder(), Text(text)])


def _late_text(filling: str) -> Callable[[str, EmbeddingSettings, Prompts], list[Part]]:
    """Return the prompts of a family of ColPali: queries have ten more tokens, whose vectors count as well."""

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
    # The network keeps the positions of its last prompt, and would take them for those of a shorter one.
    network.language_model._position_ids = network.language_model._rope_deltas = None
    found: mx.array = network._last_hidden_state(ids, **media)
    return found


def _colqwen_hidden(network: Any, ids: mx.array, media: Mapping[str, mx.array]) -> mx.array:  # noqa: ANN401
    rest = {name: value for name, value in media.items() if name != "pixel_values"}
    found = network.get_input_embeddings(ids, media.get("pixel_values"), **rest)
    # With the positions that the model was trained with, those of an image by rows and columns; its own call counts on.
    language = network.language_model.model
    hidden = language(None, inputs_embeds=found.inputs_embeds, position_ids=found.position_ids)
    projected: mx.array = network.custom_text_proj(hidden)
    return projected


def _colidefics_hidden(network: Any, ids: mx.array, media: Mapping[str, mx.array]) -> mx.array:  # noqa: ANN401
    projected: mx.array = network(ids, **media).text_embeds
    return projected


QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"

FAMILIES: Mapping[str, Family] = {
    "qwen3_vl_embedding": Family(
        QWEN_MARK, _qwen_text, _qwen_image, _qwen_hidden, several=False, takes_instruction=True, takes_text_beside=True
    ),
    "colqwen2_5": Family(QWEN_MARK, _late_text("<|endoftext|>"), _colqwen_image, _colqwen_hidden, several=True),
    "colidefics3": Family(
        "<image>", _late_text("<end_of_utterance>"), _colidefics_image, _colidefics_hidden, several=True
    ),
}
"""By the architectures of mlx-vlm."""

_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask")
"""Of what a processor makes of an image, what networks take."""


class PromptTokens:
    """Turns the parts of prompts into tokens.

    Args:
        processor: Of the model.
        mark: The text that it replaces by the tokens of an image.
    """

    def __init__(self, processor: Any, mark: str) -> None:  # noqa: ANN401 - untyped
        self._processor = processor
        self._mark = mark

    def tokens(self, parts: Sequence[Part]) -> TokenIds:
        """Return the tokens of parts without images; on one thread at a time."""
        found: list[int] = []
        for part in parts:
            if not isinstance(part, ImagePlaceholder):
                text = part.text if isinstance(part, Text) else part
                found += self._processor.tokenizer(
                    text, add_special_tokens=False, verbose=False, split_special_tokens=isinstance(part, Text)
                )["input_ids"]
        return tuple(found)

    def image_tokens(self, image: DecodedImage, place: str) -> tuple[list[int], dict[str, mx.array]]:
        """Return the tokens of an image, and what the network takes of it; on the owner thread.

        Raises:
            ValidationError: The processor cannot take it.
        """
        found = _processed(
            image, place, lambda pixels: utils.prepare_inputs(self._processor, images=[pixels], prompts=self._mark)
        )
        media = {name: mx.array(found[name]) for name in _INPUTS if found.get(name) is not None}
        return np.array(found["input_ids"]).reshape(-1).tolist(), media


_GEMMA_MARKS = {"boi_token_id": 255_999, "image_token_id": 258_880, "eoi_token_id": 258_882}
"""The tokens before, in and after an image, where the config does not state them."""


class GemmaImages:
    """Makes the tokens and the pixels of an image for EmbeddingGemma 2, a bidirectional network.

    mlx-vlm's whole processor also reads films, for which it needs packages that images do not.

    Args:
        config: Of the model.
        stated: The image processor's part of its ``processor_config.json``.
    """

    def __init__(self, config: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
        self._begin, self._inside, self._end = (int(config.get(name, usual)) for name, usual in _GEMMA_MARKS.items())
        self._processor = EmbeddingGemma2ImageProcessor(**stated)

    def image_tokens(self, image: DecodedImage, place: str) -> tuple[list[int], dict[str, mx.array]]:
        """Return the tokens of an image, and what the network takes of it; as ``PromptTokens.image_tokens``."""
        found = _processed(image, place, lambda pixels: self._processor.preprocess([pixels]))
        count = int(found["num_soft_tokens_per_image"][0])
        media = {name: mx.array(found[name]) for name in ("pixel_values", "image_position_ids")}
        return [self._begin, *[self._inside] * count, self._end], media


def _processed(
    image: DecodedImage, place: str, process: Callable[[Image.Image], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return what a processor makes of an image.

    Raises:
        ValidationError: It cannot take it.
    """
    pixels = Image.frombytes("RGB", (image.width, image.height), image.pixels)
    try:
        return process(pixels)
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        fault = f"the model's processor cannot take this image of {image.width} by {image.height} pixels"
        raise ValidationError.in_field(place, fault, hint="It may be too narrow for the model.") from error


class ImageNetwork(InputNetwork):
    """Makes one vector, or several, of a text, an image, or both.

    Args:
        network: Of mlx-vlm.
        processor: The model's own.
        family: Its prompts.
        prompts: The model's own.
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
        self._tokens_of = PromptTokens(processor, family.mark)
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
                found, length = self._text(each, f"input[{index}]", request.settings)
                tokens.append(found)
                if length > len(found):
                    truncations.append(Truncation(index, length, len(found)))
        return EncodedInputs(tuple(tokens), tuple(truncations), images)

    def compute(self, inputs: EncodedInputs, indices: Sequence[int]) -> list[Computed]:
        if indices[0] in inputs.images:
            return [self._of_image(inputs.images[indices[0]])]
        texts = [inputs.tokens[index] for index in indices]
        ids, _ = padded(texts, self._padding)
        hidden = as_rows(self._family.hidden(self._network, mx.array(ids), {}))
        return [self._computed(rows[: len(text)]) for rows, text in zip(hidden, texts, strict=True)]

    def _computed(self, rows: NDArray[np.float32]) -> Computed:
        return Computed(rows if self._family.several else rows[-1], len(rows))

    def _of_image(self, prompt: ImagePrompt) -> Computed:
        seen, media = self._tokens_of.image_tokens(prompt.image, prompt.place)
        tokens = [*prompt.before, *seen, *prompt.after]
        require_window(len(tokens), len(seen), self._window, prompt.place)
        return self._computed(as_rows(self._family.hidden(self._network, mx.array([tokens]), media))[0])

    def _image_prompt(self, given: ImageInput, place: str, settings: EmbeddingSettings) -> ImagePrompt:
        if given.text and not self._family.takes_text_beside:
            raise CapabilityError.in_field(place, "this model embeds an image without a text beside it")
        if not isinstance(given.image, DecodedImage):
            raise TypeError("the image is not decoded")
        parts = self._family.image(given.text, settings, self._prompts)
        middle = next(index for index, part in enumerate(parts) if isinstance(part, ImagePlaceholder))
        return ImagePrompt(
            given.image, self._tokens_of.tokens(parts[:middle]), self._tokens_of.tokens(parts[middle + 1 :]), place
        )

    def _text(self, given: str | TokenIds, place: str, settings: EmbeddingSettings) -> tuple[TokenIds, int]:
        """Return the tokens of a text's prompt, and how many they would be if the text were not cut.

        Raises:
            ValidationError: A given token is not in the vocabulary.
            ContextLengthError: There are too many, and truncation is off.
        """
        before: TokenIds
        after: TokenIds
        if not isinstance(given, str):
            wrong = next((token for token in given if not 0 <= token < self._vocabulary), None)
            if wrong is not None:
                raise ValidationError.in_field(place, f"{wrong} is none of this model's {self._vocabulary} tokens")
            before, content, after = (), given, ()
        else:
            parts = self._family.text(given, settings, self._prompts)
            last = max(index for index, part in enumerate(parts) if isinstance(part, Text))
            pieces = parts[:last], parts[last : last + 1], parts[last + 1 :]
            before, content, after = (self._tokens_of.tokens(piece) for piece in pieces)
        length, room = len(before) + len(content) + len(after), self._window - len(before) - len(after)
        if room < 1 or (len(content) > room and not settings.truncate):
            raise ContextLengthError(
                f"{place} has {length} tokens; the model reads {self._window}.",
                hint=Advice(Remedy.TRUNCATE_INPUT),
                detail={"prompt_tokens": length, "context_length": self._window},
            )
        return (*before, *content[:room], *after), length
