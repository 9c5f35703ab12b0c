"""The model tokenizer port on mlx-lm's and mlx-vlm's tokenizers.

Reads the tokenizer of a model that the engine has loaded, or loads the tokenizer alone, in the caller's thread; the
last few of those stay in memory. Computes nothing with MLX and never waits for the owner thread.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.engine.model_lease import ModelLeases
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.library_imports import contained
from mlxk.adapters.mlx.loaders import library_for, loader_of
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.loaded_model import LoadedModel, LoadedTokenizer, identity_of
from mlxk.adapters.mlx.loading.model_files_check import object_in, require_regular
from mlxk.adapters.mlx.loading.text_model import assemble_tokenizer, load_tokenizer, read_config
from mlxk.adapters.mlx.prompting.control_tokens import Rendering, broken_up
from mlxk.adapters.mlx.prompting.conversation_rendering import rendering_job
from mlxk.adapters.mlx.prompting.detokenizer import unwrapped
from mlxk.adapters.mlx.prompting.format_report import format_report
from mlxk.application.ports.model_tokenizer import FormatReport, ModelTokenizer, TokenizedText, TokenSpelling
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest, TokenIds
from mlxk.domain.models.model import ModelHandle

KEPT_TOKENIZERS = 2
"""Tokenizers in memory without their models; a large one takes 100 MB."""

_UNEXPANDED = "Each image or recording counts as its marker here; the model gets more tokens for it."


@attrs.frozen(eq=False)
class _Tokenizer:
    """A tokenizer, and the template of a vision-language model."""

    text: LoadedTokenizer
    vision: Any = None
    """A ``vision.network.VisionTemplate``; None for any other model."""


class MlxModelTokenizer(ModelTokenizer):
    """Renders and tokenizes.

    Args:
        leases: Of the engine, whose loaded models are used.
    """

    def __init__(self, leases: ModelLeases) -> None:
        self._leases = leases
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Tokenizer] = OrderedDict()

    def render(self, request: GenerationRequest, *, opens_answer: bool = True) -> TokenizedText:
        request.validate()
        with self._tokenizer(request.model, library_for(request)) as found:
            text, tokens = found.text, request.prompt
            if isinstance(tokens, tuple):
                return self._decoded(text, tokens, "prompt")
            if found.vision is not None and isinstance(request.prompt, Conversation):
                return self._looking(request, found, opens_answer)
            with text.lock:
                rendered = text.renderer.render(request.prompt, job=rendering_job(request, opens_answer=opens_answer))
            return TokenizedText(rendered.text, rendered.tokens, text.context_length, rendered.adaptations)

    def encode(
        self, model: ModelHandle, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> TokenizedText:
        with self._tokenizer(model) as found:
            tokenizer = found.text
            with tokenizer.lock:
                renderer = tokenizer.renderer
                renderer.require_plausible_length(text)
                rendering = Rendering(text) if parse_special else renderer.control.all_spelled(text)
                tokens = renderer.encode(rendering, begins=add_special)
            return TokenizedText(text, tuple(tokens), tokenizer.context_length)

    def decode(self, model: ModelHandle, tokens: TokenIds) -> TokenizedText:
        with self._tokenizer(model) as found:
            return self._decoded(found.text, tokens, "tokens")

    def report(self, model: ModelHandle) -> FormatReport:
        with self._tokenizer(model) as found, found.text.lock:
            tokenizer, renderer = found.text.tokenizer, found.text.renderer
            named = {
                "generation_config": _tokens(object_in(model, "generation_config.json") or {}),
                "config": _tokens(read_config(model)),
                "tokenizer": [each for each in [unwrapped(tokenizer).eos_token_id] if each is not None],
            }
            return format_report(renderer, renderer.conversations, tokenizer.get_vocab(), named)

    def spell(self, model: ModelHandle, tokens: TokenIds) -> tuple[TokenSpelling, ...]:
        with self._tokenizer(model) as found, found.text.lock:
            names = found.text.tokenizer.convert_ids_to_tokens(list(tokens))
            spell = found.text.decoder.spell
            return tuple(TokenSpelling(name or "", spell(token)) for name, token in zip(names, tokens, strict=True))

    def _decoded(self, tokenizer: LoadedTokenizer, tokens: TokenIds, field: str) -> TokenizedText:
        with tokenizer.lock:
            size = max(tokenizer.vocabulary_size or 0, max(tokenizer.tokenizer.get_vocab().values(), default=-1) + 1)
            unknown = next((token for token in tokens if not 0 <= token < size), None)
            if unknown is not None:
                raise ValidationError.in_field(field, f"names token {unknown}; the model has tokens 0 to {size - 1}")
            stream = tokenizer.decoder.stream()
            text = "".join([*map(stream.feed, tokens), stream.flush()])
        return TokenizedText(text, tokens, tokenizer.context_length)

    def _looking(self, request: GenerationRequest, found: _Tokenizer, opens_answer: bool) -> TokenizedText:
        from mlxk.adapters.mlx.vision.prompts import encode_text, render_text

        tokenizer = found.text
        with tokenizer.lock:
            rendered = render_text(request, tokenizer, found.vision, opens_answer=opens_answer)
            rendering = rendered.rendering
            if media := request.has_images or request.has_audio:
                rendering = Rendering(broken_up(rendering))
            tokenizer.renderer.require_plausible_length(rendering.text)
            tokens = tuple(encode_text(rendering, tokenizer, found.vision))
        unexpanded = _UNEXPANDED if media else None
        return TokenizedText(rendering.text, tokens, tokenizer.context_length, rendered.changes, unexpanded)

    @contextmanager
    def _tokenizer(self, model: ModelHandle, library: Library | None = None) -> Iterator[_Tokenizer]:
        """Yield the tokenizer of a loaded model, which stays loaded meanwhile, or one that is loaded alone.

        Args:
            model: The model.
            library: Renders the conversation; None for text that needs no rendering.
        """
        wanted = [WantedModel(model)] if library is None else [WantedModel(model, None, loader_of(library))]
        with self._leases.loaded(wanted, LoadedModel) as loaded:
            if loaded is None:
                yield self._alone(model, vision=library is Library.MLX_VLM)
            else:
                yield _Tokenizer(loaded, loaded.vision and loaded.vision.parts.template)

    def _alone(self, model: ModelHandle, *, vision: bool) -> _Tokenizer:
        require_regular(model)
        identity = f"{identity_of(model)}|{vision}"
        with self._lock:
            found = self._kept.pop(identity, None) or self._load(model, identity, vision)
            self._kept[identity] = found
            while len(self._kept) > KEPT_TOKENIZERS:
                self._kept.popitem(last=False)
            return found

    def _load(self, model: ModelHandle, identity: str, vision: bool) -> _Tokenizer:
        config = read_config(model)
        with translated(model, "has an architecture that is not known"), contained(model.name):
            tokenizer, template = load_tokenizer(model, config.get("eos_token_id")), None
            if vision:
                # Not at the top: mlx-vlm takes a second to import.
                from mlxk.adapters.mlx.vision.loader import load_template

                template = load_template(model, config, tokenizer)
        return _Tokenizer(assemble_tokenizer(model, identity, tokenizer, config), template)


def _tokens(config: Mapping[str, Any]) -> list[int]:
    """Return the end-of-sequence tokens that a config names."""
    nested = config.get("text_config")
    stated = config.get("eos_token_id", nested.get("eos_token_id") if isinstance(nested, dict) else None)
    return [each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, int)]
