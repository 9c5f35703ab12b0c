"""Families of mlx-audio's text to speech that load from their own folder alone, as data; imports no model library.

Most other families fetch a codec, a tokenizer or voices from other repositories when they are loaded or used, and are
refused with that reason. Soprano, Qwen3-TTS and VoxCPM were tested without a network, with tiny models; the code of the
other families was read.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

import attrs


@attrs.frozen
class Package:
    """A Python package beside mlx-audio."""

    module: str
    name: str
    """Its name in messages: the distribution, or the model of a package."""


@attrs.frozen
class Cloning:
    """Keywords of a family's ``generate`` for voice cloning."""

    sound: tuple[str, ...] = ("ref_audio",)
    """For the recording, without a transcript."""
    sound_with_text: tuple[str, ...] = ("ref_audio",)
    """For the recording, with a transcript."""
    text: str = "ref_text"
    """For the transcript."""
    needs_text: bool = False
    """Whether cloning needs the transcript."""


@attrs.frozen
class SpokenFamily:
    """One family."""

    tokens_per_second: float
    """Generated tokens for a second of sound; 0 for families that generate all sound at once, or patches."""
    packages: tuple[Package, ...] = ()
    """Packages that its text front end needs; some front ends would fetch missing ones themselves."""
    folders: tuple[str, ...] = ()
    """Folders that the model needs to make sound, ending in ``/``."""
    own_speed: bool = False
    """Whether the model itself can speak faster and slower."""
    instructions: bool = False
    """Whether it follows instructions on how to speak."""
    streams: bool = False
    """Whether it yields sound while it generates, in parts that continue each other."""
    cloning: Cloning | None = None
    """Keywords for those of its models that clone voices; see ``domain.models.detection.clones_voices``."""
    patches: bool = False
    """Whether it generates patches of sound, of a size stated in its config, without counting them."""


_MISAKI = (Package("misaki", "misaki[en]"), Package("en_core_web_sm", "en-core-web-sm (a model of spaCy)"))

_KITTEN = SpokenFamily(0.0, packages=(Package("phonemizer", "phonemizer-fork"),), own_speed=True)

_VOXCPM = SpokenFamily(0.0, cloning=Cloning(needs_text=True), patches=True)

FAMILIES: Mapping[str, SpokenFamily] = MappingProxyType(
    {
        "kitten": _KITTEN,
        "kitten_tts": _KITTEN,
        "kokoro": SpokenFamily(0.0, packages=_MISAKI, folders=("voices/",), own_speed=True),
        "qwen3_tts": SpokenFamily(
            12.5, folders=("speech_tokenizer/",), instructions=True, streams=True, cloning=Cloning()
        ),
        "soprano": SpokenFamily(15.625),
        "voxcpm": _VOXCPM,
        "voxcpm1.5": _VOXCPM,
        "voxcpm2": SpokenFamily(
            0.0,
            instructions=True,
            cloning=Cloning(sound_with_text=("ref_audio", "prompt_audio"), text="prompt_text"),
            patches=True,
        ),
    }
)
"""The families by architecture."""

_NOT_TRIED = "it was not tried"
_CODEC, _TOKENIZER, _BOTH = (
    f"it fetches {what} from elsewhere" for what in ("a codec", "a tokenizer", "codec and tokenizer")
)
_WITHOUT_A_CODEC = "it fetches a codec from elsewhere where its folder has none, and was not tried with one"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "arktts": _NOT_TRIED,
        "bailingmm": _NOT_TRIED,
        "bark": _TOKENIZER,
        **dict.fromkeys(("breeze", "breeze-tts", "breeze_tts"), _NOT_TRIED),
        "chatterbox": "it fetches a tokenizer of sound from elsewhere",
        "chatterbox_turbo": "it fetches a tokenizer of sound from elsewhere",
        "confucius4": _NOT_TRIED,
        "dia": _CODEC,
        **dict.fromkeys(("dramabox", "dramabox-tts"), "it fetches a text encoder from elsewhere"),
        "echo_tts": _CODEC,
        "fish_drama3": _NOT_TRIED,
        "fish_qwen3_omni": _NOT_TRIED,
        "higgs_audio": _CODEC,
        **dict.fromkeys(("higgs_audio_v3", "higgs_multimodal_qwen3"), _NOT_TRIED),
        "indextts": _TOKENIZER,
        "irodori_tts": _WITHOUT_A_CODEC,
        "kugelaudio": _TOKENIZER,
        "lingv3_tts": "it fetches what tells speakers apart from elsewhere",
        **dict.fromkeys(("audiodit", "longcat", "longcat_audiodit"), _TOKENIZER),
        "melotts": _TOKENIZER,
        **dict.fromkeys(("moss_tts", "moss_tts_delay", "moss_tts_local"), _WITHOUT_A_CODEC),
        "moss_tts_nano": _WITHOUT_A_CODEC,
        "omnivoice": _NOT_TRIED,
        "outetts": _BOTH,
        **dict.fromkeys(("gradium_phonon_tts", "pocket_tts"), "it fetches its voices from elsewhere"),
        "rumik_oss": _CODEC,
        **dict.fromkeys(("csm", "marvis", "sesame"), _BOTH),
        "spark": _NOT_TRIED,
        "tada": _BOTH,
        **dict.fromkeys(("vibevoice", "vibevoice_streaming"), _TOKENIZER),
        "voxtral_tts": _NOT_TRIED,
        "zonos2": _CODEC,
    }
)
"""Reasons why the other families are refused, by architecture."""


def voice_refusal(architecture: str, files: Collection[str], lacking: tuple[str, ...]) -> str | None:
    """Return why a voice cannot be loaded from its folder alone; None when it can.

    Args:
        architecture: Architecture of the model.
        files: Paths in its folder.
        lacking: Names of needed packages that are not installed.
    """
    family = FAMILIES.get(architecture)
    if family is None:
        supported, reason = ", ".join(sorted(FAMILIES)), REFUSED.get(architecture, "it is not known")
        return f"Text to speech of '{architecture}' is not supported: {reason}; supported are: {supported}"
    if lacking:
        return f"Text to speech of '{architecture}' needs the Python package {lacking[0]}, not installed"
    for folder in family.folders:
        if not any(path.startswith(folder) for path in files):
            return f"{folder} is missing, which turns the model's tokens into sound"
    return None
