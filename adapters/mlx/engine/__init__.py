"""The generation engine: one owner thread, continuous batching, chunked prefill, KV and prefix caches."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
