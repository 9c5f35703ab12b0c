"""Loading a drafter with mlx-vlm, and the hidden states of its target model that it reads.

A drafter is a small network trained for one model, its target, that proposes tokens from the target's hidden states.
Its files have no tokenizer; it often uses the target's embedding and output projection.

mlx-vlm is imported when a drafter is loaded: most processes have none.
"""

from pathlib import Path
from typing import Any

import attrs
from mlx import nn

from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import identity_of, loading_directory, offline, read_config, require_regular
from mlxk.adapters.mlx.loading.widening import parameter_bytes, widen
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.settings import DEFAULT_DRAFT_TOKENS, MAX_DRAFT_TOKENS
from mlxk.domain.models.drafting import Drafting, drafting_of
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle


@attrs.frozen(eq=False)
class LoadedDrafter:
    """A loaded drafter. The network is used on the owner thread only."""

    handle: ModelHandle
    identity: str
    """Changes with the files."""
    network: Any
    """The original: sequences compute with copies that share its weights."""
    drafting: Drafting
    weight_bytes: int

    @property
    def name(self) -> str:
        """The drafter's name."""
        return self.handle.name

    @property
    def in_blocks(self) -> bool:
        """Whether it proposes all draft tokens in one pass."""
        return self.drafting is Drafting.DFLASH

    @property
    def draft_tokens(self) -> int:
        """Default number of tokens in a draft."""
        trained = int(self.network.config.block_size) - 1
        limit = DEFAULT_DRAFT_TOKENS if self.drafting is Drafting.EAGLE3 else MAX_DRAFT_TOKENS
        return max(1, min(trained, limit))

    def unfit(self, network: Any, name: str) -> CapabilityError | None:  # noqa: ANN401
        """Return an error if a model has another hidden or vocabulary size, or too few layers; None if it fits.

        Args:
            network: The model's.
            name: The model's name.
        """
        config = self.network.config
        text = getattr(config, "text_config", None) or getattr(config, "transformer_layer_config", None) or config
        size = int(getattr(config, "target_hidden_size", None) or text.hidden_size)
        inner = _inner(network)
        fits = inner is not None and (int(text.vocab_size), size) == _embedding_shape(inner.embed_tokens)
        fits = fits and (self.drafting is not Drafting.MTP or hasattr(inner, "norm"))
        if fits and max(self._layers(), default=0) < len(network.layers):
            return None
        return CapabilityError(
            f"draft_model: '{self.name}' was made for another model than '{name}'.",
            hint="A drafter belongs to one model, which its own page names.",
        )

    def read_modules(self, network: Any) -> list[nn.Module]:  # noqa: ANN401
        """Return the target's modules whose outputs the drafter reads, in order: layers, or the final norm."""
        if self.drafting is Drafting.MTP:
            return [_inner(network).norm]
        return [network.layers[index] for index in self._layers()]

    def _layers(self) -> list[int]:
        if self.drafting is Drafting.MTP:
            return []
        config = self.network.config
        return list(getattr(config, "capture_layer_ids", None) or config.target_layer_ids)


def load_drafter(handle: ModelHandle, form: WeightForm = WeightForm.STORED) -> LoadedDrafter:
    """Load a drafter; must run on the owner thread.

    Args:
        handle: The drafter.
        form: How to hold its weights.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        CapabilityError: The model is no drafter.
        BackendNotInstalledError: mlx-vlm is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    require_regular(handle)
    drafting = drafting_of(read_config(handle))  # refuses a config that names code; no other code would be run here
    if drafting is None:
        raise CapabilityError(f"draft_model: '{handle.name}' is no drafter.")
    with translated(handle, "is a drafter mlx-vlm does not know"), offline(), loading_directory(handle) as directory:
        from mlx_vlm import utils

        network = utils.load_model(Path(directory))
        if form.widened:
            widen(network, WeightForm.WIDE)
    return LoadedDrafter(handle, identity_of(handle), network, drafting, parameter_bytes(network))


def _inner(network: Any) -> Any:  # noqa: ANN401
    """Return the module with the network's embedding and, in most networks, its final norm; None if there is none."""
    outer = getattr(network, "language_model", network)
    inner = getattr(outer, "model", outer)
    return inner if hasattr(inner, "embed_tokens") else None


def _embedding_shape(embedding: nn.Module) -> tuple[int, int]:
    rows, columns = embedding.weight.shape
    return rows, columns * 32 // embedding.bits if "scales" in embedding else columns
