"""The language model of a vision model with the interface of the engine: token ids and KV cache in, logits out."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
from mlx_vlm.models.cache import make_prompt_cache

from mlxk.adapters.mlx.vision.encoder import CachingEncoder
from mlxk.adapters.mlx.vision.language_mends import choose_by_row, scale_prompts

_PAST_THE_VOCABULARY = {"deepseek_v4": 5}
"""Architectures with image tokens after the vocabulary, and the number of these tokens."""


_KINDS = {"image": ("image", "img"), "video": ("video", "image", "img"), "audio": ("audio", "sound")}
"""Prefixes of a config's names for the placeholder tokens of each kind of media; a clip's frames may be images."""

_ENDINGS = ("token_id", "token_index", "context_token_id")
"""Suffixes of these names."""


@attrs.frozen(eq=False)
class VisionTemplate:
    """The parts of a model that rendering a prompt needs; used on any thread."""

    processor: Any
    """Converts text and images to the model's inputs."""
    config: Any
    """mlx-vlm's config of the architecture."""

    @property
    def type(self) -> str:
        """The architecture, in mlx-vlm's terms."""
        return str(self.config.model_type)

    @property
    def media_tokens(self) -> frozenset[int]:
        """Placeholder tokens of all media, as far as the config names them."""
        return frozenset[int]().union(*map(self.tokens_of, _KINDS))

    def tokens_of(self, kind: str) -> frozenset[int]:
        """Return the placeholder tokens for a kind of media, as far as the config names them.

        Args:
            kind: ``image``, ``video`` or ``audio``.
        """
        if self.type in _PAST_THE_VOCABULARY:
            size: int = self.config.vocab_size
            return frozenset(range(size, size + _PAST_THE_VOCABULARY[self.type]))
        names = [f"{word}_{ending}" for word in _KINDS[kind] for ending in _ENDINGS]
        holders = (self.config, getattr(self.config, "thinker_config", None))
        values = (getattr(holder, name, None) for holder in holders for name in names)
        return frozenset(token for token in values if isinstance(token, int))


@attrs.frozen(eq=False)
class VisionParts:
    """A loaded model of mlx-vlm; used on the owner thread only."""

    model: Any
    """The complete model: encoders and language model."""
    processor: Any
    """Converts text and images to the model's inputs."""
    encoder: CachingEncoder | None
    """The caching vision encoder; None if the model's encoder was not found."""

    @property
    def language(self) -> Any:  # noqa: ANN401 - mlx-vlm has no types to name
        """The language model."""
        return self.model.language_model

    @property
    def type(self) -> str:
        """The architecture, in mlx-vlm's terms."""
        return self.template.type

    @property
    def template(self) -> VisionTemplate:
        """The parts that rendering needs."""
        return VisionTemplate(self.processor, self.model.config)


class RowPositions:
    """The last layer of a cache: the offset between the rotary position of each row and its token count.

    Args:
        offsets: Shape [B, 1], integers; None for models whose positions are the token count.
    """

    def __init__(self, offsets: mx.array | None = None) -> None:
        self.offsets = offsets

    @property
    def state(self) -> list[mx.array]:
        """Its arrays."""
        return [] if self.offsets is None else [self.offsets]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(array.nbytes for array in self.state)

    def step(self) -> Mapping[str, Any]:
        """Return the language model's keyword arguments for the next step."""
        return {} if self.offsets is None else {"rope_deltas": self.offsets}

    def is_trimmable(self) -> bool:
        """Whether tokens can be removed: always, since the offset is set again with every prompt."""
        return True

    def trim(self, tokens: int) -> int:
        """Remove tokens."""
        return tokens

    @classmethod
    def merge(cls, rows: "Sequence[RowPositions]") -> "RowPositions":
        """Merge rows into a batch."""
        return cls(_concatenated([row.offsets for row in rows]))

    def extend(self, other: "RowPositions") -> None:
        """Append the rows of another batch."""
        self.offsets = _concatenated([self.offsets, other.offsets])

    def filter(self, keep: Sequence[int]) -> None:
        """Keep some rows."""
        if self.offsets is not None:
            self.offsets = self.offsets[mx.array(list(keep))]

    def extract(self, index: int) -> "RowPositions":
        """Return a single row."""
        return RowPositions(None if self.offsets is None else self.offsets[index : index + 1])


class RowFeatures:
    """The last layer of a cache: features to which every step of a sequence attends; cannot be merged to a batch.

    Args:
        always: Keyword arguments of the language model for every step.
        first: Keyword arguments for the first step only, which computes the prompt's last token.
    """

    def __init__(self, always: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        self._always = dict(always)
        self._first = dict(first)

    @property
    def state(self) -> list[mx.array]:
        """Its arrays."""
        return [value for value in (*self._always.values(), *self._first.values()) if isinstance(value, mx.array)]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(array.nbytes for array in self.state)

    def step(self) -> Mapping[str, Any]:
        """Return the language model's keyword arguments for the next step."""
        options = {**self._always, **self._first}
        self._first = {}
        return options

    def is_trimmable(self) -> bool:
        """Whether tokens can be removed: always, since the features do not depend on them."""
        return True

    def trim(self, tokens: int) -> int:
        """Remove tokens."""
        return tokens


class VisionNetwork:
    """Steps the language model of a vision-language model.

    Args:
        language: mlx-vlm's language model.
    """

    def __init__(self, language: Any) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
        self._language = language
        _see_whole_images(getattr(language, "model", None))
        choose_by_row(language)
        scale_prompts(language)
        self.has_positions = hasattr(language, "_rope_deltas") or hasattr(language, "_position_ids")
        """Whether rotary positions may differ from the token count."""
        self.takes_positions = hasattr(language, "_rope_deltas") or not self.has_positions
        """Whether each prefill chunk can be given its positions; otherwise only the first one can."""
        self.attends_ahead = getattr(getattr(language, "config", None), "use_bidirectional_attention", None) is True
        """Whether all tokens of a prompt attend to later ones."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Compute the logits that follow the next token of every row.

        Args:
            tokens: Shape [B, 1].
            cache: From ``make_cache``, or merged from several.

        Returns:
            Shape [B, 1, V].
        """
        *layers, extra = cache
        options = extra.step()
        if "rope_deltas" in options:
            self.remember(None, options["rope_deltas"])
        logits: mx.array = logits_of(self._language(tokens, cache=layers, **options))
        return logits

    def remember(self, positions: mx.array | None, offsets: mx.array | None) -> None:
        """Set the positions of a prompt and the offsets of the rows of a batch, with which the language model goes on.

        Many language models store those of their last prompt, and would use them for any other prompt that follows.
        """
        if self.has_positions:
            self._language._position_ids = positions
            self._language._rope_deltas = offsets

    def remembered(self) -> dict[str, mx.array]:
        """Return the positions and offsets that the language model has stored, by the names of its arguments."""
        stated = {
            "position_ids": getattr(self._language, "_position_ids", None),
            "rope_deltas": getattr(self._language, "_rope_deltas", None),
        }
        return {name: value for name, value in stated.items() if value is not None}

    def make_cache(self) -> list[Any]:
        """Return an empty cache: the model's own layers and the layer of position offsets."""
        return [*make_prompt_cache(self._language), RowPositions()]


def _see_whole_images(model: Any) -> None:  # noqa: ANN401
    """Have tokens of an image attend to its later ones also if the beginning of the prompt is cached.

    Models with such attention have the method that is replaced here; it ignores masks with cached keys.
    """
    if not hasattr(model, "_apply_blockwise_bidirectional_overlay"):
        return

    def overlay(mask: mx.array, kinds: mx.array) -> mx.array:
        images = model._block_sequence_ids_for_mask(kinds)
        later, earlier = images[:, -mask.shape[-2] :, None], images[:, None, -mask.shape[-1] :]
        return mask | mx.expand_dims((later != -1) & (later == earlier), 1)

    model._apply_blockwise_bidirectional_overlay = overlay


def logits_of(output: Any) -> Any:  # noqa: ANN401
    """Return the logits in a language model's output, which is an array or has them as an attribute."""
    return getattr(output, "logits", output)


def _concatenated(offsets: Sequence[mx.array | None]) -> mx.array | None:
    arrays = [each for each in offsets if each is not None]
    return mx.concatenate(arrays, axis=0) if arrays else None
