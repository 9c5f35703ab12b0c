"""Training examples with images: encoding them as for generation, and the losses of their answers.

Imports mlx-vlm. Vision encoders are not trained, so the features of an image are computed once.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlxk.adapters.mlx.loading.adapted import whole_network
from mlxk.adapters.mlx.loading.text_model import LoadedModel, LoadedTokenizer
from mlxk.adapters.mlx.tuning.examples import EncodedExample, ExampleEncoder
from mlxk.adapters.mlx.tuning.objective import Losses, mask_of
from mlxk.adapters.mlx.vision.encoded import ENCODING
from mlxk.adapters.mlx.vision.network import VisionParts, VisionTemplate, logits_of
from mlxk.adapters.mlx.vision.prefill import VisionPrompt
from mlxk.adapters.mlx.vision.prompts import ProcessedPrompt, process_conversation, render_text
from mlxk.application.recently_used import RecentlyUsed
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.tuning.examples import Example

ImageReader = Callable[[Example], Conversation]
"""Returns the conversation of an example with its images, decoded."""

_KEPT_BYTES = 512 * 1024 * 1024
"""Maximum size of the cache of processed images, and of that of their features."""


class ImageExampleEncoder(ExampleEncoder):
    """Encodes examples for a vision model; takes the arguments of ``ExampleEncoder`` as well.

    Args:
        template: The model's processor and config.
        read_images: Reads the images of an example.

    Raises:
        ValidationError: The model encodes its prompts, so that its loss is not that of the next token.
    """

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        template: VisionTemplate,
        read_images: ImageReader,
        max_length: int,
        *,
        mask_prompt: bool,
    ) -> None:
        if template.type in ENCODING:
            raise ValidationError(
                f"'{tokenizer.handle.name}' ({template.type}) has an encoder beside its decoder: it is not tuned"
            )
        super().__init__(tokenizer, max_length, mask_prompt=mask_prompt)
        self._tokenizer, self._template, self._read_images = tokenizer, template, read_images
        self._templated = True
        self._kept = RecentlyUsed[ProcessedPrompt]()
        self._kept.max_bytes = _KEPT_BYTES

    def encode(self, example: Example) -> EncodedExample:
        """Return an example as tokens; raises as ``ExampleEncoder.encode``, and if truncation would cut its images."""
        encoded = super().encode(example)
        if example.parts and self.processed(encoded).last_media >= len(encoded.tokens) - 1:
            raise ValidationError(
                f"line {example.line}: its {encoded.uncut} tokens are cut to {len(encoded.tokens)} within the images",
                hint="Allow more tokens, or show smaller images.",
            )
        return encoded

    def processed(self, encoded: EncodedExample) -> ProcessedPrompt:
        """Return an encoded example with the processor's arrays for its images, from a cache if possible."""
        tokens = encoded.tokens
        if not encoded.source.parts:
            return ProcessedPrompt(tokens, {}, frozenset(), -1, "")
        key = hashlib.sha256(repr((tokens, encoded.source.parts)).encode()).hexdigest()
        prompt = self._kept.get(key)
        if prompt is None:
            prompt = self._processed(self._with_media(encoded.source))
            sizes = (leaf.nbytes for _, leaf in tree_flatten(dict(prompt.inputs)) if isinstance(leaf, np.ndarray))
            self._kept.put(key, prompt, sum(sizes))
        return attrs.evolve(prompt, tokens=tokens, processor_tokens=tokens)

    def _with_media(self, example: Example) -> Conversation:
        return self._read_images(example)

    def _rendered(self, conversation: Conversation, *, opens: bool = False) -> list[int]:
        return list(self._processed(conversation, opens=opens).tokens)

    def _processed(self, conversation: Conversation, *, opens: bool = False) -> ProcessedPrompt:
        request = GenerationRequest(self._tokenizer.handle, conversation)
        text = render_text(request, self._tokenizer, self._template, opens_answer=opens)
        return process_conversation(text.rendering, conversation, self._template, self._tokenizer)


@attrs.frozen(eq=False)
class _EmbeddedExample:
    """An example as inputs of a vision model's language model."""

    ids: mx.array
    """Shape [1, L]."""
    embeddings: mx.array
    """Shape [1, L, D]."""
    options: dict[str, Any]
    """Further keyword arguments of the language model."""
    mask: mx.array
    """See ``mask_of``."""


class ImageLosses(Losses):
    """Computes the losses of examples with a vision model, one example after the other.

    Args:
        model: The model to train or evaluate.
        read_images: Reads the images of an example.
    """

    def __init__(self, model: LoadedModel, read_images: ImageReader) -> None:
        super().__init__(model)
        self.network: nn.Module = whole_network(model)
        self._name, self._read_images = model.name, read_images
        self._stepped = model.vision.network
        self._parts: VisionParts = model.vision.parts
        model.vision.keep_features(_KEPT_BYTES)
        self._encoder: ImageExampleEncoder

    def encoder(self, tokenizer: LoadedTokenizer, max_length: int, *, mask_prompt: bool) -> ImageExampleEncoder:
        self._encoder = ImageExampleEncoder(
            tokenizer, self._parts.template, self._read_images, max_length, mask_prompt=mask_prompt
        )
        return self._encoder

    def batch(self, examples: Sequence[EncodedExample]) -> Any:  # noqa: ANN401 - trees of arrays
        return list(map(self._embedded, examples))

    def sums(self, batch: Any) -> tuple[mx.array, mx.array]:  # noqa: ANN401
        sums = []
        for each in batch:
            self._stepped.remember(each.options.get("position_ids"), each.options.get("rope_deltas"))
            output = self._parts.language(
                inputs=each.ids, inputs_embeds=each.embeddings, cache=self._stepped.make_cache()[:-1], **each.options
            )
            logits = logits_of(output)[0, :-1].astype(mx.float32)
            sums.append((nn.losses.cross_entropy(logits, each.ids[0, 1:]) * each.mask).sum())
        return mx.stack(sums), mx.stack([each.mask.sum() for each in batch])

    def _embedded(self, example: EncodedExample) -> _EmbeddedExample:
        prompt = VisionPrompt(self._parts, self._stepped, self._encoder.processed(example))
        options = prompt.embedded()
        embeddings, length = options.pop("inputs_embeds"), len(example.tokens)
        if embeddings.shape[1] != length or min(example.tokens) < 0:
            raise ValidationError(
                f"'{self._name}' is of an architecture whose images are not as many tokens as features: it is not tuned"
            )
        mx.eval(embeddings)
        return _EmbeddedExample(mx.array([example.tokens]), embeddings, options, mask_of(example, length))
