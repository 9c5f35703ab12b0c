"""From conversations to token ids, and from token ids to text, tool calls and constrained output."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
