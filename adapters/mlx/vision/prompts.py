"""Prompts with images, clips and audio: rendering with the chat template, and running the model's processor.

Templates are rendered first, on any thread. Processors run on the owner thread, since they compute with MLX; their
results hold NumPy arrays. Images are passed as pixels and audio as samples: no processor is given a URL or a path.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_vlm import prompt_utils, utils

from mlxk.adapters.mlx.engine.prefix_cache import MediaIdentity
from mlxk.adapters.mlx.loading.text_model import LoadedModel, LoadedTokenizer
from mlxk.adapters.mlx.prompting.control_tokens import Rendering, broken_up
from mlxk.adapters.mlx.prompting.conversation_rendering import RenderingJob, rendering_job
from mlxk.adapters.mlx.prompting.template_inputs import WirePrompt, wire_prompt
from mlxk.adapters.mlx.prompting.template_sandbox import waiting_lock
from mlxk.adapters.mlx.prompting.templates import RenderedPrompt, RenderedText, require_no_template_options
from mlxk.adapters.mlx.vision import clips, prompt_limits
from mlxk.adapters.mlx.vision.network import VisionParts, VisionTemplate
from mlxk.adapters.mlx.vision.prepared import as_pillow
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.conversation import Conversation, MessagePart
from mlxk.domain.generation.media import DecodedImage, DecodedVideo
from mlxk.domain.generation.request import GenerationRequest

_PROCESSOR_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""Raised by processors for media and prompts that do not match."""

_NARROW_ASPECT_RATIO = 50
"""From this aspect ratio on an image is reported as the likely cause when a processor fails."""


@attrs.frozen(eq=False)
class ProcessedPrompt:
    """A prompt after the model's processor."""

    tokens: tuple[int, ...]
    """One token id for each embedding; placeholder tokens are negative in some models."""
    inputs: Mapping[str, Any]
    """The model's other inputs by name; arrays are NumPy's."""
    markers: frozenset[int]
    """Placeholder tokens of media."""
    last_media: int
    """Index of the last placeholder token; -1 without media."""
    identity: str
    """Differs between prompts with the same tokens and other media; empty without media."""
    media: MediaIdentity = attrs.field(factory=MediaIdentity)
    """The prompt's media."""
    processor_tokens: tuple[int, ...] = attrs.field(default=attrs.Factory(lambda self: self.tokens, takes_self=True))
    """The processor's tokens; differ from ``tokens`` after ``expanded``."""

    def expanded(self, length: int) -> "ProcessedPrompt":
        """Return the prompt with one token for each embedding, if the model makes more or fewer of media.

        Args:
            length: Number of embeddings.
        """
        marks = [index for index, token in enumerate(self.tokens) if token in self.markers or token < 0]
        if not marks or length == len(self.tokens):
            return self
        begin, end = marks[0], marks[-1] + 1
        missing = length - len(self.tokens)
        middle = (self.tokens[begin],) * (end - begin + missing)
        # The new tokens do not show the text between images: the identity must.
        digest = hashlib.sha256(repr(self.tokens).encode()).hexdigest()
        return attrs.evolve(
            self,
            tokens=self.tokens[:begin] + middle + self.tokens[end:],
            last_media=self.last_media + missing,
            identity=f"{self.identity}#of={digest}",
            processor_tokens=self.tokens,
        )


def process_prompt(
    request: GenerationRequest, model: LoadedModel, parts: VisionParts, text: RenderedText | None
) -> tuple[RenderedPrompt, ProcessedPrompt]:
    """Run the model's processor on a prompt.

    Args:
        request: The request.
        model: The loaded model.
        parts: The model's parts.
        text: The rendered conversation; None if the prompt is no conversation.

    Raises:
        ValidationError: The media do not match the prompt.
        CapabilityError: The model accepts fewer media.
    """
    conversation = request.prompt
    if text is None or not isinstance(conversation, Conversation):
        with model.lock:
            rendered = model.renderer.render(conversation, rendering_job(request))
        return rendered, ProcessedPrompt(rendered.tokens, {}, frozenset(), -1, "")
    conversation = clips.shown(conversation, parts.template)
    with model.lock:
        processed = process_conversation(text.rendering, conversation, parts.template, model)
    return text.with_tokens(known_tokens(processed.tokens, model)), processed


def known_tokens(tokens: Sequence[int], model: LoadedModel) -> tuple[int, ...]:
    """Return tokens clamped to the vocabulary, of which placeholder tokens may be outside."""
    size = model.vocabulary_size
    return tuple(min(max(token, 0), size - 1) if size else max(token, 0) for token in tokens)


def render_prompt(request: GenerationRequest, model: LoadedModel, parts: VisionParts) -> RenderedText | None:
    """Return the rendered text of a conversation, or None for another prompt; on any thread.

    Raises:
        ValidationError, CapabilityError, InterruptedRunError: See ``render_text``.
        ContextLengthError: The text is certainly too long.
    """
    if not isinstance(request.prompt, Conversation):
        return None
    with waiting_lock(model.lock, request.is_abandoned):
        rendered = render_text(request, model, parts.template)
        model.renderer.require_plausible_length(rendered.rendering.text)
    return rendered


def render_text(
    request: GenerationRequest, tokenizer: LoadedTokenizer, model: VisionTemplate, *, opens_answer: bool = True
) -> RenderedText:
    """Return the rendered text of a conversation, with the model's media markers; does not use MLX.

    Args:
        request: The request; its prompt is a conversation.
        tokenizer: The model's, locked by the caller.
        model: The model.
        opens_answer: Whether the text ends with the beginning of an assistant message.

    Raises:
        ValidationError: The template refuses the conversation.
        CapabilityError: The model accepts fewer media, or has no template for tools or reasoning.
        InterruptedRunError: The client has disconnected.
    """
    conversation = request.prompt
    if not isinstance(conversation, Conversation):
        raise TypeError("only conversations are rendered")
    conversation = clips.shown(conversation, model)
    holder = _template_holder(model.processor, has_audio=bool(conversation.audio))
    prompt = wire_prompt(conversation)
    for message, wire in zip(conversation.messages, prompt.messages, strict=True):
        if message.parts:
            wire["content"] = [_wire_part(part) for part in message.parts]
    job = rendering_job(request, opens_answer=opens_answer)
    try:
        if holder is not None and not _writes_text(conversation, prompt, model):
            renderer = tokenizer.renderer.conversations_of(holder)

            def formatted(prompt: WirePrompt) -> WirePrompt:
                return attrs.evolve(prompt, messages=tuple(_formatted(conversation, list(prompt.messages), model)))

            return tokenizer.renderer.rendered(conversation, prompt, renderer, job, formatted)
        require_no_template_options(conversation, request.reasons)
        return RenderedText(_rendered_by_library(conversation, prompt, tokenizer, model, job))
    except _PROCESSOR_ERRORS as error:
        # Without the error's message, which may quote content.
        fault = f"the model's chat template cannot render this conversation ({type(error).__name__})"
        raise ValidationError.in_field("messages", fault) from error


def _writes_text(conversation: Conversation, prompt: WirePrompt, model: VisionTemplate) -> bool:
    """Whether mlx-vlm formats messages of this architecture as plain text, for which there is no template."""
    return isinstance(_formatted(conversation, list(prompt.messages), model)[-1], str)


def _rendered_by_library(
    conversation: Conversation,
    prompt: WirePrompt,
    tokenizer: LoadedTokenizer,
    model: VisionTemplate,
    job: RenderingJob,
) -> Rendering:
    def render(messages: list[dict[str, Any]], _: list[dict[str, Any]]) -> str:
        formatted = _formatted(conversation, messages, model)
        last = formatted[-1]
        is_text = isinstance(last, str)
        text = str(last if is_text else prompt_utils.get_chat_template(model.processor, formatted, job.opens_answer))
        text.encode()  # raises for lone surrogates
        return text

    if job.parse_special:
        return Rendering(render(list(prompt.messages), []))
    return tokenizer.renderer.control.render(list(prompt.messages), [], render)


def encode_text(rendering: Rendering, tokenizer: LoadedTokenizer, model: VisionTemplate) -> list[int]:
    """Return the tokens of a rendered text without media; a media marker is one token."""
    text, processor = rendering.text, model.processor
    begins = _adds_special_tokens(text, model)
    if not rendering.spelled:
        return list(getattr(processor, "tokenizer", processor).encode(text, add_special_tokens=begins))
    return tokenizer.renderer.encode(rendering, begins=begins)


def _formatted(conversation: Conversation, wire: list[dict[str, Any]], model: VisionTemplate) -> list[Any]:
    """Return the messages in the form of the architecture's template, with each medium in its own message."""
    prompt_limits.require_few_images(conversation, model.type)
    task = prompt_limits.as_task(wire, model.type)
    if task is not None:
        return [task]
    if model.type.lower() not in prompt_utils.MODEL_CONFIG:
        return wire
    messages: list[Any] = prompt_utils.apply_chat_template(
        model.processor, model.config, wire, return_messages=True, num_images=0
    )
    for index, message in enumerate(conversation.messages):
        if message.videos:
            # mlx-vlm would write video markers only for paths of files.
            messages[index] = wire[index]
        elif message.audio:
            # Given the complete conversation, mlx-vlm would move all audio to the last message.
            messages[index] = prompt_utils.get_message_json(
                model.type,
                wire[index]["content"],
                message.role.value,
                skip_image_token=not message.images,
                num_images=len(message.images),
                num_audios=len(message.audio),
            )
        if len(messages) == len(wire) and isinstance(messages[index], dict):
            # mlx-vlm writes role and content only; templates also read tool calls, their results and reasoning.
            messages[index] = {**wire[index], **messages[index]}
    if prompt_utils.MODEL_CONFIG[model.type.lower()] is prompt_utils.MessageFormat.NUMBERED_IMAGE_TOKENS:
        _renumber_images(messages, conversation)
    return messages


def _renumber_images(formatted: list[Any], conversation: Conversation) -> None:
    """Number the image markers consecutively over the conversation: mlx-vlm restarts in each message."""
    earlier = 0
    for message, wire in zip(conversation.messages, formatted, strict=False):
        if message.images and isinstance(wire["content"], str):
            wire["content"] = re.sub(r"(?<=<\|image_)\d{1,9}\b", lambda n: str(int(n[0]) + earlier), wire["content"])  # noqa: B023
        earlier += len(message.images)


def _wire_part(part: MessagePart) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, DecodedVideo):
        return {"type": "video"}
    return {"type": "image" if isinstance(part, DecodedImage) else "audio"}


def _template_holder(processor: Any, *, has_audio: bool) -> Any:  # noqa: ANN401 - untyped
    """Return the processor or tokenizer with the model's chat template; None if neither has one.

    With audio the tokenizer is preferred, since the processor of Gemma 4 would move all audio to the last message.
    """
    holders = [processor, getattr(processor, "tokenizer", None)]
    for holder in reversed(holders) if has_audio else holders:
        render = getattr(holder, "apply_chat_template", None)
        if render is not None and getattr(holder, "chat_template", None) is not None:
            return holder
    return None


def process_conversation(
    rendering: Rendering, conversation: Conversation, model: VisionTemplate, tokenizer: LoadedTokenizer
) -> ProcessedPrompt:
    """Run the model's processor on a rendered conversation.

    Args:
        rendering: The rendered conversation.
        conversation: The conversation with its media, as ``clips.shown`` returns it.
        model: The model.
        tokenizer: The model's, locked by the caller.

    Raises:
        ValidationError: The media do not match the prompt.
        CapabilityError: The model accepts fewer media.
    """
    images, recordings, videos = conversation.images, conversation.audio, conversation.videos
    prompt_limits.require_few_sounds(conversation.messages, model)
    if rendering.spelled and not images and not recordings and not videos:
        return ProcessedPrompt(tuple(encode_text(rendering, tokenizer, model)), {}, frozenset(), -1, "")
    # The processor tokenizes the text itself: markers that are spelled in messages must not look like markers.
    text = broken_up(rendering)
    if images:
        prompt_limits.require_whole_task(text, model.processor)
    try:
        inputs = utils.prepare_inputs(
            model.processor,
            images=[as_pillow(image) for image in images] or None,
            audio=prompt_limits.samples(recordings, model.processor) or None,
            prompts=text,
            image_token_index=getattr(model.config, "image_token_index", None),
            add_special_tokens=_adds_special_tokens(text, model),
            **clips.inputs(videos),
        )
        rows = _token_ids(inputs["input_ids"])
        remainder = {
            name: _to_numpy(value) for name, value in inputs.items() if name not in ("input_ids", "attention_mask")
        }
    except _PROCESSOR_ERRORS as error:
        raise _refusal(error, conversation) from error
    if len(rows) > 1:
        fault = f"this model ({model.type}) takes one image at a time, not at {len(images)}"
        raise CapabilityError.in_field("messages", fault, hint="Show one in a conversation.")
    tokens = rows[0]
    if images and not any(word in name for name in remainder for word in ("pixel", "image")):
        # mlx-vlm falls back to the tokenizer if it cannot build the processor: images would be ignored.
        fault = f"the model's processor ({type(model.processor).__name__}) makes nothing of images"
        raise CapabilityError.in_field("messages", fault, hint="Files of the processor may be missing or damaged.")
    media_tokens = model.media_tokens
    if not images and not recordings and not videos:
        return ProcessedPrompt(tuple(tokens), remainder, media_tokens, -1, "")
    first, last = _media_span(tokens, [("image", images), ("video", videos), ("audio", recordings)], model)
    if last == len(tokens) - 1:
        raise ValidationError.in_field("messages", "the prompt ends with an image or a sound; it must end with text")
    shown = _shown(conversation, first)
    return ProcessedPrompt(tuple(tokens), remainder, media_tokens, last, _identity(conversation), shown)


def _media_span(
    tokens: Sequence[int], kinds: Sequence[tuple[str, Sequence[object]]], model: VisionTemplate
) -> tuple[int, int]:
    """Return the indices of the first and the last placeholder token.

    Media of a kind whose placeholder tokens are unknown may be anywhere in the prompt.

    Args:
        tokens: The prompt's.
        kinds: Media by kind; there is at least one medium.
        model: The model.
    """
    span: list[int] = []
    for placeholders in (model.tokens_of(kind) for kind, media in kinds if media):
        indices = [index for index, token in enumerate(tokens) if token in placeholders or token < 0]
        if not indices:
            return 0, len(tokens) - 2
        span += (indices[0], indices[-1])
    return min(span), max(span)


def _refusal(error: Exception, conversation: Conversation) -> ValidationError | CapabilityError:
    """Return an error with the likely cause of a processor's failure; the processor's own message is about arrays."""
    sizes = [(image.width, image.height) for image in conversation.images]
    narrow = next((size for size in sizes if max(size) > _NARROW_ASPECT_RATIO * min(size)), None)
    kinds = {"images": sizes, "video": conversation.videos, "sound": conversation.audio}
    media = " and ".join(name for name, items in kinds.items() if items) or "images"
    # mlx-vlm raises another error while it handles a missing file.
    if isinstance(error, FileNotFoundError) or isinstance(error.__context__, FileNotFoundError):
        fault = f"a file that the model's processor needs for {media} is missing"
        return CapabilityError.in_field("messages", fault, hint="Download the model again, with all of its folders.")
    if narrow is None:
        reason = f"A prompt must not contain the marks of {media}."
    else:
        reason = f"One has {narrow[0]} by {narrow[1]} pixels, which may be too narrow for it."
    taken = f"this {media}" if media in ("sound", "video") else f"these {media}"
    fault = f"the model's processor cannot take {taken} with this prompt ({type(error).__name__})"
    return ValidationError.in_field("messages", fault, hint=reason)


def _adds_special_tokens(text: str, model: VisionTemplate) -> bool:
    """Whether the tokenizer is to add its special tokens: as in mlx-vlm, but never a second beginning-of-sequence."""
    tokenizer = getattr(model.processor, "tokenizer", model.processor)
    begin = getattr(tokenizer, "bos_token", None)
    if isinstance(begin, str) and begin and text.startswith(begin):
        return False
    return bool(utils.should_add_special_tokens(model.type, model.processor))


def _identity(conversation: Conversation) -> str:
    digests = [image.digest for image in conversation.images] + [audio.digest for audio in conversation.audio]
    digests += [video.digest for video in conversation.videos]
    return "#shows=" + hashlib.sha256("".join(digests).encode()).hexdigest()


def _shown(conversation: Conversation, first: int) -> MediaIdentity:
    kinds = (conversation.images, conversation.audio, conversation.videos)
    return MediaIdentity(tuple(tuple(each.digest for each in kind) for kind in kinds), first)


def _token_ids(ids: Any) -> list[list[int]]:  # noqa: ANN401
    """Return the tokens of each prompt in a processor's array or list."""
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    nested = bool(values) and isinstance(values[0], list)
    return [list(row) for row in values] if nested else [list(values)]


def _to_numpy(value: Any) -> Any:  # noqa: ANN401
    """Return a tree with MLX's arrays converted to NumPy's, which may leave the owner thread."""

    def convert(leaf: Any) -> Any:  # noqa: ANN401
        if not isinstance(leaf, mx.array):
            return leaf
        return np.array(leaf.astype(mx.float32) if leaf.dtype == mx.bfloat16 else leaf)

    return tree_map(convert, value)
