"""Pictures and sounds for tests, and mlx-vlm's own greedy answer about them to hold answers against."""

import functools
import hashlib
import io
import warnings
import wave
from typing import Any

import numpy as np
from PIL import Image

from mlxk.domain.generation.conversation import Conversation, Message, MessagePart
from mlxk.domain.generation.media import AUDIO_RATE, DecodedAudio, DecodedImage
from mlxk.domain.models.model import ModelHandle


def noise(seed: int, width: int = 70, height: int = 60) -> DecodedImage:
    """Return a picture of coloured noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8).tobytes()
    return DecodedImage(width, height, pixels, hashlib.sha256(pixels).hexdigest())


def tone(pitch_hertz: float, seconds: float = 1.0) -> DecodedAudio:
    """Return a sound that swells."""
    moments = np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE
    swell = np.linspace(0.1, 0.9, len(moments))
    samples = (swell * np.sin(2 * np.pi * pitch_hertz * moments)).astype("<f4").tobytes()
    return DecodedAudio(samples, hashlib.sha256(samples).hexdigest())


def as_wav(sound: DecodedAudio) -> bytes:
    """Return a sound as a file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(AUDIO_RATE)
        file.writeframes((np.frombuffer(sound.samples, "<f4") * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def as_pillow(image: DecodedImage) -> Image.Image:
    """Return a picture as Pillow has it."""
    return Image.frombytes("RGB", (image.width, image.height), image.pixels)


def as_png(image: DecodedImage) -> bytes:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    as_pillow(image).save(buffer, "PNG")
    return buffer.getvalue()


def about(*parts: MessagePart) -> Conversation:
    """Return a conversation of one turn."""
    return Conversation((Message.of_parts(*parts),))


@functools.cache
def loaded(handle: ModelHandle) -> tuple[Any, Any]:
    """Load a model with mlx-vlm itself."""
    import mlx_vlm

    from mlxk.adapters.mlx import library_imports  # noqa: F401 - imports mlx-lm without its side effects

    with warnings.catch_warnings(action="ignore"):
        return mlx_vlm.load(handle.directory)  # type: ignore[no-any-return]


def oracle(
    handle: ModelHandle, conversation: Conversation, max_tokens: int = 24, *, written: str | None = None, **options: Any
) -> tuple[bytes, ...]:
    """Return the bytes of each token of mlx-vlm's own greedy answer, without the end token.

    Args:
        handle: The model.
        conversation: What it is asked.
        max_tokens: The most tokens of the answer.
        written: The prompt in place of what mlx-vlm makes of the conversation.
        options: Of the chat template.
    """
    import mlx_vlm
    from mlx_vlm.prompt_utils import apply_chat_template

    from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder

    model, processor = loaded(handle)
    if getattr(model, "language_model", None) is not None and hasattr(model.language_model, "_rope_deltas"):
        model.language_model._rope_deltas = None  # of the prompt before, which some families go on with
    messages = [
        {"role": message.role.value, "content": [_part(part) for part in message.parts] or message.content}
        for message in conversation.messages
    ]
    counts = {"num_images": 0, "num_audios": len(conversation.audio)}
    prompt = written
    if prompt is None:
        prompt = apply_chat_template(processor, model.config, messages, **counts, **options)
    media: dict[str, Any] = {
        "image": [as_pillow(image) for image in conversation.images] or None,
        "audio": [_heard(sound, processor) for sound in conversation.audio] or None,
    }
    stream = mlx_vlm.stream_generate(model, processor, prompt, max_tokens=max_tokens, temperature=0.0, **media)
    # Its last response repeats the last token and adds the statistics.
    found = [response.token for response in stream][:-1]
    tokenizer = getattr(processor, "tokenizer", processor)
    decoder, ends = TokenDecoder(_spelling(tokenizer, handle)), tokenizer.stopping_criteria.eos_token_ids
    return tuple(decoder.spell(token) for token in found if token not in ends)


def _spelling(tokenizer: Any, handle: ModelHandle) -> Any:
    """Return a tokenizer that tells the bytes of its tokens, as mlx-vlm's own ones on SentencePiece do not."""
    if not hasattr(tokenizer, "sp_model"):
        return tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(handle.directory)


def _heard(sound: DecodedAudio, processor: Any) -> Any:
    """Return the samples of a sound as mlx-vlm makes them of a file."""
    from mlx_audio.utils import resample_audio

    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", AUDIO_RATE)
    return resample_audio(np.frombuffer(sound.samples, "<f4"), AUDIO_RATE, rate)


def _part(part: MessagePart) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image" if isinstance(part, DecodedImage) else "audio"}
