"""Loading text models from a directory, without running code that came with them."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
