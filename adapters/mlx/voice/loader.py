"""Loading speech models with mlx-audio from their own directory: no network, no pickle, no code from the model."""

import contextlib
import io
import math
import os
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_audio.tts import utils

from mlxk.adapters.mlx.library_imports import contained
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import (
    loading_directory,
    offline,
    quietly,
    read_config,
    refuse_untrusted_code,
    weight_bytes,
    weight_files,
)
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.spoken_families import FAMILIES, Cloning, SpokenFamily
from mlxk.adapters.mlx.voice.sound import Sound
from mlxk.domain.errors import CapabilityError, IncompatibleModelError, UnhealthyModelError, ValidationError
from mlxk.domain.models.detection import clones_voices
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.synthesis import SAMPLE_TEXT

_LONGEST_SECONDS = 3.0
_SECONDS_PER_CHARACTER = 0.3
"""With ``_LONGEST_SECONDS``, the time limit of a text's sound, for models that do not find the end."""

_STREAMED_SECONDS = 1.0
"""Length of the fragments that streaming families yield."""

_PLAIN_VOICE = "A clear, calm, neutral voice."
"""Default description for models that make a voice from a description."""


_SOPRANO_1_1 = "soprano-1.1"
_SOPRANO_NORM, _SOPRANO_1_1_WIDTH = "decoder.decoder.norm.weight", 768


@attrs.frozen
class Fragment:
    """A part of a model's output."""

    sound: Sound
    tokens: int
    """Number of tokens generated for it, in the model's own units."""


@attrs.frozen(eq=False)
class Voice:
    """A loaded speech synthesis model; its methods run on the owner thread only."""

    handle: ModelHandle
    weight_bytes: int
    network: nn.Module
    architecture: str
    family: SpokenFamily
    designs_voice: bool
    """Whether the model makes its voice from the instructions, which it then requires."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handle.name

    @property
    def sample_rate(self) -> int:
        """Sample rate of its sound, Hz."""
        return int(self.network.sample_rate)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, or of characters if the model has no tokenizer."""
        tokenizer = getattr(self.network, "tokenizer", None)
        encode = getattr(tokenizer, "encode", None)
        return len(encode(text, add_special_tokens=False)) if callable(encode) else len(text)

    def as_text(self, text: str) -> str:
        """Return a text without the model's control tokens: a space is inserted into each that is spelled in it."""
        known: dict[str, int] = getattr(getattr(self.network, "tokenizer", None), "get_added_vocab", dict)()
        for token in sorted((each for each in known if len(each) > 1), key=len, reverse=True):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @property
    def tokens_per_second(self) -> float:
        """Tokens that it generates for a second of sound; 0 if it does not generate token by token."""
        if not self.family.patches:
            return self.family.tokens_per_second
        codec = self.network.audio_vae
        samples = self.network.patch_size * getattr(codec, "decode_chunk_size", codec.hop_length)
        return float(self.sample_rate / samples)

    @property
    def takes_sample_text(self) -> bool:
        """Whether it uses the transcript of a voice sample; some codecs have no encoder for that."""
        return bool(getattr(getattr(self.network, "speech_tokenizer", None), "has_encoder", True))

    def imitating(self, sound: Sound, text: str | None) -> Mapping[str, Any]:
        """Return a voice sample as the argument ``recording`` of ``speak``, for a model that imitates voices.

        Args:
            sound: The recording at the model's sample rate.
            text: Its transcript, if known.
        """
        cloning = self.family.cloning or Cloning()
        array = mx.array(sound)
        if text is None or not self.takes_sample_text:
            return dict.fromkeys(cloning.sound, array)
        return {**dict.fromkeys(cloning.sound_with_text, array), cloning.text: self.as_text(text)}

    def forget_recordings(self) -> None:
        """Clear the library's caches of voice samples."""
        getattr(self.network, "_icl_cache", {}).clear()
        encoder = getattr(getattr(self.network, "speech_tokenizer", None), "encoder_model", None)
        if encoder is not None:
            encoder.encoder.reset_state()
            encoder.encoder_cache = encoder.encoder_transformer.make_cache()
        mx.clear_cache()

    def speak(
        self,
        text: str,
        voice: str | None,
        instructions: str | None,
        speed: float,
        recording: Mapping[str, Any] = MappingProxyType({}),
    ) -> Generator[Fragment, None, None]:
        """Yield the sound of a piece of text, in fragments of about a second or as a whole.

        Args:
            text: About a sentence.
            voice: Name of one of the model's voices; None for its default.
            instructions: How to speak; ignored by families that take no instructions.
            speed: Ignored by families that cannot change it.
            recording: Voice to imitate, from ``imitating``.
        """
        keywords: dict[str, Any] = {"text": self.as_text(text), "verbose": False, **recording}
        if voice is not None:
            keywords["voice"] = voice
            if self.architecture == "kokoro":
                keywords["lang_code"] = voice[0]
        if self.family.instructions:
            keywords["instruct"] = instructions or (_PLAIN_VOICE if self.designs_voice else None)
        if self.family.own_speed:
            keywords["speed"] = speed
        if self.tokens_per_second:
            seconds = _LONGEST_SECONDS + _SECONDS_PER_CHARACTER * len(text)
            keywords["max_tokens"] = math.ceil(seconds * self.tokens_per_second)
        if self.family.streams:
            keywords |= {"stream": True, "streaming_interval": _STREAMED_SECONDS}
        with offline(), contextlib.redirect_stdout(io.StringIO()):
            results = iter(self.network.generate(**keywords))
        while True:
            with offline(), contextlib.redirect_stdout(io.StringIO()):
                result = next(results, None)
                if result is None:
                    break
                sound = np.array(result.audio.astype(mx.float32)).reshape(-1)
            patches = round(len(sound) / self.sample_rate * self.tokens_per_second) if self.family.patches else None
            yield Fragment(sound, int(result.token_count or 0) if patches is None else patches)
        mx.clear_cache()


def require_cloning(handle: ModelHandle, *, text_known: bool) -> None:
    """Refuse a model that cannot imitate the voice of a recording, before it is loaded.

    Args:
        handle: The model.
        text_known: Whether the recording's transcript is given.

    Raises:
        CapabilityError: The model does not imitate voices.
        ValidationError: The model needs the transcript.
    """
    config = read_config(handle)
    family = FAMILIES.get(_architecture_of(config))
    if family is None or family.cloning is None or not clones_voices(config):
        raise CapabilityError(f"'{handle.label}' does not imitate the voice of a recording.")
    if family.cloning.needs_text and not text_known:
        needed = f"is needed: '{handle.label}' imitates a voice only with the words that are said in the recording"
        problem = {"param": SAMPLE_TEXT, "message": needed}
        raise ValidationError(f"{SAMPLE_TEXT} {needed}", options=(SAMPLE_TEXT,), detail={"problems": [problem]})


def _architecture_of(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type") or "kokoro")


def load_voice(handle: ModelHandle, form: WeightForm = WeightForm.STORED) -> Voice:
    """Load a model.

    Args:
        handle: The model.
        form: How to hold its weights.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: It is of no family that loads offline.
        BackendNotInstalledError: A package that this family needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    refuse_untrusted_code(handle)
    config = read_config(handle)
    architecture = _architecture_of(config)
    family = FAMILIES.get(architecture)
    if family is None:
        raise IncompatibleModelError(
            f"'{handle.name}' ({architecture}) is of no family that is known to speak offline."
        )
    for folder in family.folders:
        if not os.path.isdir(os.path.join(handle.directory, folder)):
            raise UnhealthyModelError(f"'{handle.name}' lacks the folder {folder}", hint="Download the model again.")
    with (
        translated(handle, f"has an architecture mlx-audio does not know ({architecture})"),
        offline(),
        quietly(),
        contained(handle.name),  # innermost: it captures what a library prints before it exits
    ):
        with loading_directory(handle) as directory, _versioned(handle, architecture, directory) as directory:
            network = utils.load_model(directory, model_name_parts=[architecture], model_type=architecture)
        _require_parts(handle, network)
        folders = (handle.directory, *(os.path.join(handle.directory, folder) for folder in family.folders))
        size = widen(network, form) if form.widened else sum(map(weight_bytes, folders))
    designs = config.get("tts_model_type") == "voice_design"
    return Voice(handle, size, network, architecture, family, designs)


@contextlib.contextmanager
def _versioned(handle: ModelHandle, architecture: str, directory: Path) -> Iterator[Path]:
    """Yield the model's directory, for Soprano under a path with the right version, from which mlx-audio takes it."""
    loaded: list[Any] = [mx.load(path) for path in weight_files(handle.directory)] if architecture == "soprano" else []
    widths = [tensors[_SOPRANO_NORM].size for tensors in loaded if _SOPRANO_NORM in tensors]  # reads headers only
    wide = _SOPRANO_1_1_WIDTH in widths
    if not widths or wide == (_SOPRANO_1_1 in str(directory).lower()):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix=f"mlxk-{_SOPRANO_1_1 if wide else architecture}-") as folder:
        for name in os.listdir(directory):
            os.symlink(os.path.abspath(directory / name), os.path.join(folder, name))
        yield Path(folder)


def _require_parts(handle: ModelHandle, network: nn.Module) -> None:
    """Refuse a model with a part that could not be loaded, which the library only prints.

    Raises:
        UnhealthyModelError: Names the part.
    """
    parts = {"tokenizer": "tokenizer", "speech_tokenizer": "codec, in speech_tokenizer/,"}
    for attribute, part in parts.items():
        if hasattr(network, attribute) and getattr(network, attribute) is None:
            raise UnhealthyModelError(
                f"The {part} of '{handle.name}' cannot be loaded.", hint="Download the model again."
            )
