"""Texts as vectors with mlx-vlm's embedding models."""
