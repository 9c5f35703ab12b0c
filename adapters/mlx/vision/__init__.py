"""Models that look at images, with mlx-vlm, in the engine that writes text: same thread, same batches, same settings.

``loader`` loads, ``prompts`` turns a conversation into what the model reads, ``prefill`` computes it, and from then on
an answer about an image is a row like any other, stepped by ``network``.
"""
