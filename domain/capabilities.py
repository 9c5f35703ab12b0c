"""The closed vocabulary of what a model is and can do. How it is detected stands in ``domain.detection``."""

import enum


class Capability(enum.Enum):
    """One thing a model can do; values are the names in the JSON API, and the order is the order of listing."""

    TEXT_GENERATION = "text-generation"
    CHAT = "chat"
    VISION = "vision"
    AUDIO = "audio"
    AUDIO_TRANSLATE_EN = "audio-translate-en"
    EMBEDDINGS = "embeddings"


class Framework(enum.Enum):
    """The format of a model's weights."""

    MLX = "MLX"
    GGUF = "GGUF"
    PYTORCH = "PyTorch"
    UNKNOWN = "Unknown"


class ModelType(enum.Enum):
    """The one word that says what a model is for."""

    CHAT = "chat"
    BASE = "base"
    EMBEDDING = "embedding"
    AUDIO = "audio"


class Backend(enum.Enum):
    """The library that runs a model; values are the names of the distributions."""

    MLX_LM = "mlx-lm"
    MLX_VLM = "mlx-vlm"
    MLX_AUDIO = "mlx-audio"
