"""What the engine keeps of a model that looks at images, beside what it keeps of every model."""

from typing import Any

import attrs

from mlxk.adapters.mlx.vision.towers import RememberingTower


@attrs.frozen(eq=False)
class VisionParts:
    """A model as mlx-vlm loads it. Belongs to the owner thread."""

    model: Any
    """Looks at pixels, and holds the language model."""
    processor: Any
    """Turns text and images into what the model takes."""
    tower: RememberingTower | None
    """Remembers what was seen; None when the model keeps its sight somewhere we do not know."""

    @property
    def language(self) -> Any:  # noqa: ANN401 - mlx-vlm has no types to name
        """The part that writes."""
        return self.model.language_model

    @property
    def type(self) -> str:
        """The architecture, as mlx-vlm calls it."""
        return str(self.model.config.model_type)
