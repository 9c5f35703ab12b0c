"""The MLX libraries: mlx, mlx-lm, mlx-vlm and mlx-audio. Nothing here is imported before a model runs."""
