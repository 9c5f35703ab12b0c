"""Drafters: models that propose another model's tokens from its hidden states, and their detection by config."""

import enum
import re
from collections.abc import Mapping

from mlxk.domain.models.detection import listed


class Drafting(enum.Enum):
    """A drafter's method; values are its names."""

    EAGLE3 = "eagle3"
    """Hidden states of three layers, one token after the other."""
    DFLASH = "dflash"
    """Hidden states of several layers, all tokens at once."""
    MTP = "mtp"
    """Hidden states of the last layer, one token after the other."""


_DRAFTERS = {"eagle3": Drafting.EAGLE3, "qwen3_5_mtp": Drafting.MTP, "glm_moe_dsa_mtp": Drafting.MTP}
"""Architecture to method; a DFlash drafter has the architecture of its layers and is detected by its settings."""

_OTHER_DRAFTER = re.compile(r"eagle|dflash|dspark|mtp\b|assistant\b", re.IGNORECASE)


def drafting_of(config: Mapping[str, object]) -> Drafting | None:
    """Return a drafter's method; None for any other model, and for a drafter that is not supported."""
    architecture = config.get("model_type") or config.get("speculators_model_type")
    settings = config.get("dflash_config")
    if isinstance(settings, Mapping):
        heads = (settings.get("projector_type"), settings.get("markov_rank"), config.get("markov_rank"))
        plain = architecture == "qwen3" and not any(heads) and "DFlash2DraftModel" not in listed(config)
        return Drafting.DFLASH if plain else None
    return _DRAFTERS.get(architecture) if isinstance(architecture, str) else None


def other_drafter(config: Mapping[str, object]) -> str | None:
    """Return the kind of a drafter that is not supported; None for a model that is no drafter."""
    names = (config.get("model_type"), config.get("speculators_model_type"), *listed(config))
    kind = next((name for name in names if isinstance(name, str) and _OTHER_DRAFTER.search(name)), None)
    return kind or ("dflash" if isinstance(config.get("dflash_config"), Mapping) else None)
