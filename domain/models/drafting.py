"""Drafters: models that propose the tokens of another one, and read its hidden states; which they are, by config."""

import enum
import re
from collections.abc import Mapping

from mlxk.domain.models.detection import listed


class Drafting(enum.Enum):
    """How a drafter proposes tokens from the hidden states of its model; values are its names."""

    EAGLE3 = "eagle3"
    """From three layers, one token after the other."""
    DFLASH = "dflash"
    """From several layers, all tokens at once."""
    MTP = "mtp"
    """From the last layer, one token after the other."""


_DRAFTERS = {"eagle3": Drafting.EAGLE3, "qwen3_5_mtp": Drafting.MTP, "glm_moe_dsa_mtp": Drafting.MTP}
"""By architecture; DFlash has that of the layers it is made of."""

_OTHER_DRAFTER = re.compile(r"eagle|dflash|dspark|mtp\b|assistant\b", re.IGNORECASE)


def drafting_of(config: Mapping[str, object]) -> Drafting | None:
    """Return how a model proposes tokens that reads another one's hidden states; None for any other model."""
    architecture = config.get("model_type") or config.get("speculators_model_type")
    settings = config.get("dflash_config")
    if isinstance(settings, Mapping):
        heads = (settings.get("projector_type"), settings.get("markov_rank"), config.get("markov_rank"))
        plain = architecture == "qwen3" and not any(heads) and "DFlash2DraftModel" not in listed(config)
        return Drafting.DFLASH if plain else None
    return _DRAFTERS.get(architecture) if isinstance(architecture, str) else None


def other_drafter(config: Mapping[str, object]) -> str | None:
    """Return the kind of a drafter for which ``drafting_of`` is None; None for a model that is no drafter."""
    named = (config.get("model_type"), config.get("speculators_model_type"), *listed(config))
    found = next((each for each in named if isinstance(each, str) and _OTHER_DRAFTER.search(each)), None)
    return found or ("dflash" if isinstance(config.get("dflash_config"), Mapping) else None)
