"""Providers of what asking about sound needs. Part of the composition root; ``container`` registers them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxk.application.ports.audio_decoder import AudioDecoder
    from mlxk.application.use_cases.ask_about_recording import AskAboutRecording
    from mlxk.application.use_cases.generate_text import GenerateText


def audio_decoder() -> "AudioDecoder":
    """Decode sound as for speech models."""
    from mlxk.adapters.mlx.speech.audio_file import MlxAudioDecoder

    return MlxAudioDecoder()


def ask_about_recording(generate: "GenerateText", decoder: "AudioDecoder") -> "AskAboutRecording":
    """Ask about recordings."""
    from mlxk.application.use_cases.ask_about_recording import AskAboutRecording

    return AskAboutRecording(generate, decoder)
