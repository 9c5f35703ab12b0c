"""Speech as text with mlx-audio: decoding sound, every family of speech models, one kind of transcript."""
