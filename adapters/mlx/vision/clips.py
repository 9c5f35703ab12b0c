"""Video clips in prompts: as video placeholder tokens for models that have them, else as frames, which are images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mlx_vlm.generate.video import processor_handles_video
from mlx_vlm.utils import MODEL_REMAPPING, VideoMetadata

from mlxk.adapters.mlx.vision.network import VisionTemplate
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import DecodedVideo
from mlxk.domain.models.snapshot import has_default_template

_VIDEO_MODELS = frozenset(
    {
        "llava_onevision",
        "mimo_v2",
        "minimax_m3_vl",
        "muse_spark",
        "nemotron_h_nano_omni",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen4_exp",
    }
)
"""Architectures whose answers about clips were compared with mlx-vlm's own."""

_SINGLE_CLIP = frozenset({"nemotron_h_nano_omni"})
"""Architectures among these whose processors take only one clip in a prompt."""


def shown(conversation: Conversation, model: VisionTemplate) -> Conversation:
    """Return a conversation with its clips in a form that the model takes: clips, or images of their frames.

    Clips stay clips if the model has video tokens and its template writes them, unless the conversation also has images
    or has more clips than the model takes: these networks merge the features of one kind of media only.
    """
    if conversation.videos and not conversation.images and _takes_video(model, len(conversation.videos)):
        return conversation
    return conversation.with_frames_as_images()


def inputs(videos: Sequence[DecodedVideo]) -> Mapping[str, Any]:
    """Return the keyword arguments of mlx-vlm's ``prepare_inputs`` for clips; empty without clips."""
    if not videos:
        return {}
    return {"videos": [_pixels(video) for video in videos], "video_metadata": [_metadata(video) for video in videos]}


def prunes(model: VisionTemplate) -> bool:
    """Whether the network drops repeated parts of clips, so that it has fewer features than placeholder tokens."""
    return bool(getattr(model.config, "video_pruning_rate", 0))


def _takes_video(model: VisionTemplate, clips: int) -> bool:
    architecture = MODEL_REMAPPING.get(model.type.lower(), model.type.lower())
    too_many = clips > 1 and architecture in _SINGLE_CLIP
    if architecture not in _VIDEO_MODELS or too_many or not processor_handles_video(model.processor):
        return False
    holders = (model.processor, getattr(model.processor, "tokenizer", None))
    templates = (getattr(holder, "chat_template", None) for holder in holders)
    return any(has_default_template(each) and "video" in str(each) for each in templates)


def _pixels(video: DecodedVideo) -> Any:  # noqa: ANN401 - numpy's array, shape [frames, channels, height, width]
    frames = (frame.image for frame in video.frames)
    rows = [np.frombuffer(each.pixels, np.uint8).reshape(each.height, each.width, 3) for each in frames]
    return np.transpose(np.stack(rows), (0, 3, 1, 2))


def _metadata(video: DecodedVideo) -> VideoMetadata:
    first = video.frames[0].image
    return VideoMetadata(
        total_num_frames=video.total_frames,
        fps=video.rate,
        frames_indices=[frame.index for frame in video.frames],
        width=first.width,
        height=first.height,
        duration=video.total_frames / video.rate,
    )
