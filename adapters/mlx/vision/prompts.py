"""Prompts with images, clips and audio: rendering with the chat template, and the model's processor.

Processors run on the owner thread, since they compute with MLX, and their results hold numpy arrays; templates are
rendered before. Images are given as pixels and audio as samples: no processor is ever given a URL or a path.
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
from mlxk.domain.generation.conversation import Conversation, Message, MessagePart
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
    """One for each embedding; media have many each, whose ids are negative in some models."""
    inputs: Mapping[str, Any]
    """The model's other inputs by name; arrays are numpy's."""
    markers: frozenset[int]
    """Tokens that stand for media."""
    last_media: int
    """Index of the last media token; -1 without media."""
    identity: str
    """Distinguishes it from a prompt of the same tokens with other media; empty without media."""
    shown: MediaIdentity = attrs.field(factory=MediaIdentity)
    """Its media."""
    given: tuple[int, ...] = attrs.field(default=attrs.Factory(lambda self: self.tokens, takes_self=True))
    """The processor's; fewer than ``tokens`` where the model has a marker take the place of all an image's features."""

    def expanded(self, length: int) -> "ProcessedPrompt":
        """Return it with as many tokens as there are embeddings, where the model makes more or fewer of media."""
        marks = [index for index, token in enumerate(self.tokens) if token in self.markers or token < 0]
        if not marks or length == len(self.tokens):
            return self
        begin, end = marks[0], marks[-1] + 1
        missing = length - len(self.tokens)
        middle = (self.tokens[begin],) * (end - begin + missing)
        # What stands between images is not told apart by the tokens any longer.
        written = hashlib.sha256(repr(self.tokens).encode()).hexdigest()
        return attrs.evolve(
            self,
            tokens=self.tokens[:begin] + middle + self.tokens[end:],
            last_media=self.last_media + missing,
            identity=f"{self.identity}#of={written}",
            given=self.tokens,
        )


def process_prompt(
    request: GenerationRequest, model: LoadedModel, parts: VisionParts, text: RenderedText | None
) -> tuple[RenderedPrompt, ProcessedPrompt]:
    """Run the model's processor on a prompt.

    Args:
        request: The request.
        model: The loaded model.
        parts: Its parts.
        text: The rendered conversation; None for a prompt that is none.

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
    """Return tokens with those of media, which may be outside of it, brought into the vocabulary."""
    size = model.vocabulary_size
    return tuple(min(max(token, 0), size - 1) if size else max(token, 0) for token in tokens)


def render_prompt(request: GenerationRequest, model: LoadedModel, parts: VisionParts) -> RenderedText | None:
    """Return the rendered text of a conversation, None of another prompt; on any thread.

    Raises:
        ValidationError, CapabilityError, InterruptedRunError: See ``render_text``.
        ContextLengthError: It is certainly too long.
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
    """Return the rendered text of a conversation, with the model's media markers; uses no MLX.

    Args:
        request: Its prompt is a conversation.
        tokenizer: The model's; locked by the caller.
        model: The model.
        opens_answer: Whether the text ends with the beginning of the assistant's message.

    Raises:
        ValidationError: The template refuses the conversation.
        CapabilityError: The model accepts fewer media, or it has no template for tools or reasoning.
        InterruptedRunError: The client has gone.
    """
    conversation = request.prompt
    if not isinstance(conversation, Conversation):
        raise TypeError("only conversations are rendered")
    conversation = clips.shown(conversation, model)
    holder = _template_holder(model.processor, has_audio=bool(conversation.audio))
    prompt = wire_prompt(conversation)
    for message, written in zip(conversation.messages, prompt.messages, strict=True):
        if message.parts:
            written["content"] = _wire_parts(message)
    job = rendering_job(request, opens_answer=opens_answer)
    try:
        if holder is not None and not _writes_text(conversation, prompt, model):
            renderer = tokenizer.renderer.conversations_of(holder)

            def formatted(written: WirePrompt) -> WirePrompt:
                messages = _formatted(conversation, list(written.messages), model)
                return attrs.evolve(written, messages=tuple(messages))

            return tokenizer.renderer.rendered(conversation, prompt, renderer, job, formatted)
        require_no_template_options(conversation, request.reasons)
        return RenderedText(_rendered_by_library(conversation, prompt, tokenizer, model, job))
    except _PROCESSOR_ERRORS as error:
        # Without its message, which may quote the value.
        fault = f"the model's chat template cannot render this conversation ({type(error).__name__})"
        raise ValidationError.in_field("messages", fault) from error


def _writes_text(conversation: Conversation, prompt: WirePrompt, model: VisionTemplate) -> bool:
    """Whether mlx-vlm writes messages of this architecture as plain text, which no template renders."""
    return isinstance(_formatted(conversation, list(prompt.messages), model)[-1], str)


def _rendered_by_library(
    conversation: Conversation,
    prompt: WirePrompt,
    tokenizer: LoadedTokenizer,
    model: VisionTemplate,
    job: RenderingJob,
) -> Rendering:
    def render(messages: list[dict[str, Any]], _: list[dict[str, Any]]) -> str:
        found = _formatted(conversation, messages, model)
        plain = isinstance(found[-1], str)
        text = str(found[-1] if plain else prompt_utils.get_chat_template(model.processor, found, job.opens_answer))
        text.encode()
        return text

    if job.parse_special:
        return Rendering(render(list(prompt.messages), []))
    return tokenizer.renderer.control.render(list(prompt.messages), [], render)


def encode_text(rendering: Rendering, tokenizer: LoadedTokenizer, model: VisionTemplate) -> list[int]:
    """Return the tokens of a rendered text; a marker of media is one token."""
    text, processor = rendering.text, model.processor
    begins = _adds_special_tokens(text, model)
    if not rendering.spelled:
        return list(getattr(processor, "tokenizer", processor).encode(text, add_special_tokens=begins))
    return tokenizer.renderer.encode(rendering, begins=begins)


def _formatted(conversation: Conversation, wire: list[dict[str, Any]], model: VisionTemplate) -> list[Any]:
    """Return the messages in the form that the architecture's template expects, with media in their own messages."""
    prompt_limits.require_few_images(conversation, model.type)
    task = prompt_limits.as_task(wire, model.type)
    if task is not None:
        return [task]
    if model.type.lower() not in prompt_utils.MODEL_CONFIG:
        return wire
    found: list[Any] = prompt_utils.apply_chat_template(
        model.processor, model.config, wire, return_messages=True, num_images=0
    )
    for index, message in enumerate(conversation.messages):
        if message.videos:
            # mlx-vlm would write their marks only where it is given the paths of files.
            found[index] = wire[index]
        elif message.audio:
            # Given a complete conversation, mlx-vlm would move all audio to the last message.
            found[index] = prompt_utils.get_message_json(
                model.type,
                wire[index]["content"],
                message.role.value,
                skip_image_token=not message.images,
                num_images=len(message.images),
                num_audios=len(message.audio),
            )
        if len(found) == len(wire) and isinstance(found[index], dict):
            # mlx-vlm writes role and content only; calls, their results and reasoning are the template's as well.
            found[index] = {**wire[index], **found[index]}
    if prompt_utils.MODEL_CONFIG[model.type.lower()] is prompt_utils.MessageFormat.NUMBERED_IMAGE_TOKENS:
        _number_through(found, conversation)
    return found


def _number_through(written: list[Any], conversation: Conversation) -> None:
    """Number the marks of images through a conversation: mlx-vlm begins again in each message."""
    earlier = 0
    for message, found in zip(conversation.messages, written, strict=False):
        if message.images and isinstance(found["content"], str):
            found["content"] = re.sub(r"(?<=<\|image_)\d+", lambda mark: str(int(mark[0]) + earlier), found["content"])  # noqa: B023
        earlier += len(message.images)


def _wire_parts(message: Message) -> list[dict[str, str]]:
    return [_wire_part(part) for part in message.parts]


def _wire_part(part: MessagePart) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, DecodedVideo):
        return {"type": "video"}
    return {"type": "image" if isinstance(part, DecodedImage) else "audio"}


def _template_holder(processor: Any, *, has_audio: bool) -> Any:  # noqa: ANN401 - untyped
    """Return the processor or tokenizer that has the model's chat template; None without one.

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
    """Run the model's processor on a rendered conversation, whose clips are as ``clips.shown`` returns them.

    Args:
        rendering: Of the conversation.
        conversation: With its media.
        model: The model.
        tokenizer: Its tokenizer, locked by the caller.

    Raises:
        ValidationError: The media do not match the prompt.
        CapabilityError: The model accepts fewer media.
    """
    images, recordings, videos = conversation.images, conversation.audio, conversation.videos
    prompt_limits.require_few_sounds(conversation.messages, model)
    if rendering.spelled and not images and not recordings and not videos:
        return ProcessedPrompt(tuple(encode_text(rendering, tokenizer, model)), {}, frozenset(), -1, "")
    # The processor reads the text itself, so that spelled markers must not look like markers.
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
        # mlx-vlm falls back to the tokenizer where it cannot build the processor, and would answer without looking.
        fault = f"the model's processor ({type(model.processor).__name__}) makes nothing of images"
        raise CapabilityError.in_field("messages", fault, hint="Files of the processor may be missing or damaged.")
    media_tokens = model.media_tokens
    if not images and not recordings and not videos:
        return ProcessedPrompt(tuple(tokens), remainder, media_tokens, -1, "")
    first, last = _between(tokens, [("image", images), ("video", videos), ("audio", recordings)], model)
    if last == len(tokens) - 1:
        raise ValidationError.in_field("messages", "the prompt ends with an image or a sound; it must end with text")
    shown = _shown(conversation, first)
    return ProcessedPrompt(tuple(tokens), remainder, media_tokens, last, _identity(conversation), shown)


def _between(
    tokens: Sequence[int], kinds: Sequence[tuple[str, Sequence[object]]], model: VisionTemplate
) -> tuple[int, int]:
    """Return the indices of the first and the last token that stands for media of some kinds; all but one may be none.

    Of a kind whose tokens the config does not tell, media may be anywhere in the prompt.
    """
    places: list[int] = []
    for marks in (model.tokens_of(kind) for kind, given in kinds if given):
        found = [index for index, token in enumerate(tokens) if token in marks or token < 0]
        if not found:
            return 0, len(tokens) - 2
        places += found
    return min(places), max(places)


def _refusal(error: Exception, conversation: Conversation) -> ValidationError | CapabilityError:
    """Return the likely cause of a processor's failure; its own message is about arrays."""
    sizes = [(image.width, image.height) for image in conversation.images]
    narrow = next((size for size in sizes if max(size) > _NARROW_ASPECT_RATIO * min(size)), None)
    kinds = {"images": sizes, "video": conversation.videos, "sound": conversation.audio}
    media = " and ".join(name for name, given in kinds.items() if given) or "images"
    # mlx-vlm raises another error while it handles this one.
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
    """Whether the tokenizer adds its special tokens: as in mlx-vlm, but never a second beginning-of-sequence token."""
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
    """Return the tokens of each prompt, of a processor's array or nested list."""
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    nested = bool(values) and isinstance(values[0], list)
    return [list(row) for row in values] if nested else [list(values)]


def _to_numpy(value: Any) -> Any:  # noqa: ANN401
    """Return a tree with MLX's arrays converted to numpy's, which may leave the owner thread."""

    def convert(leaf: Any) -> Any:  # noqa: ANN401
        if not isinstance(leaf, mx.array):
            return leaf
        return np.array(leaf.astype(mx.float32) if leaf.dtype == mx.bfloat16 else leaf)

    return tree_map(convert, value)
