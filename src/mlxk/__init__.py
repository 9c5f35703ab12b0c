"""mlxk, the knife for local models on Apple's MLX. This module owns the version and nothing else."""

__version__ = "0.2.0"
