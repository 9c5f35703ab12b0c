"""Speech to text with mlx-audio: audio decoding, all families of speech models, one kind of transcript."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
