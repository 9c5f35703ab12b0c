"""Generate text, for the terminal and every HTTP API: resolve, probe, policy, load, run.

A model gets all images of a conversation together if those of the last message fit into one chunk. Otherwise each chunk
is a conversation of its own, started when the previous one has ended, so that neither memory nor attention is shared
between chunks. A message with a clip, of which the model gets sampled frames, is never divided into chunks. A model
without vision gets a note in place of the images and clips of earlier messages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from mlxk.application.generation_input import (
    GenerationOptions,
    ImageSource,
    IncomingConversation,
    MediaReaders,
    Prompt,
    Recording,
    encoded_images,
    is_visual,
    messages_with_images,
)
from mlxk.application.policy import (
    require_audio_input,
    require_draft_model,
    require_memory,
    require_reasoning,
    require_text_model,
    require_tools,
    require_vision,
)
from mlxk.application.ports.media import AudioDecoder, ImageReader, VideoDecoder
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.system import EventLog
from mlxk.application.ports.text_generator import STATE_SECONDS, TextGenerator, TextStream
from mlxk.application.text_streams import ChunkedStream, DescribedChunk
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import CapabilityError, MlxkError, ParameterNotSupportedError, ValidationError
from mlxk.domain.generation.conversation import Conversation, MessagePart, Role
from mlxk.domain.generation.image_table import Chunk, ImageNumbers, ShownImage, ShownVideo
from mlxk.domain.generation.media import (
    MAX_CHUNK,
    DecodedImage,
    EncodedImage,
    check_chunk,
    check_together,
)
from mlxk.domain.generation.profile import Profile
from mlxk.domain.generation.request import GenerationRequest, TokenIds
from mlxk.domain.generation.settings import ACTIVATION_MODES, EngineOptions
from mlxk.domain.generation.video import EncodedVideo, check_frames, require_few_videos
from mlxk.domain.models.model import Capability, ModelDescription, ModelDetails, ModelHandle


@attrs.frozen
class PreparedImage:
    """An image that was decoded for a conversation."""

    shown: ShownImage
    pixels: DecodedImage


@attrs.frozen
class GenerateText:
    """Completes prompts and conversations, with images, clips and audio."""

    resolve: ResolveModel
    describe: DescribeModel
    generator: TextGenerator
    images: ImageReader
    audio: AudioDecoder
    videos: VideoDecoder
    memory: MemoryProbe
    log: EventLog
    exif: bool = True
    """Whether recording metadata of images and clips may be given to the user and the model."""
    profiles: Mapping[str, Profile] = attrs.field(factory=dict)
    """Profiles by the user's own names of models."""
    usual: Profile = attrs.field(factory=Profile)
    """The profile of every model."""
    of_model: Callable[[ModelHandle], Profile] = lambda _: Profile()
    """Returns the profile of a model under any of its names."""
    held: Callable[[ModelDescription], ModelDescription] = lambda model: model
    """Returns the share of a model that this machine holds when it is spread over several; by default all of it."""

    @property
    def _media(self) -> MediaReaders:
        return MediaReaders(self.images, self.audio, self.videos, self.exif)

    def profile_of(self, model: ModelHandle) -> Profile:
        """Return the user's defaults for a model under the name by which it was found, the most specific first."""
        own = self.profiles.get(model.alias) if model.alias is not None else None
        usual = self.of_model(model).over(self.usual)
        if model.adapter is not None:
            usual = Profile(engine_options=EngineOptions(adapter=model.adapter)).over(usual)
        return usual if own is None else own.over(usual)

    def compare_base(self, model: ModelHandle, adapter: str | None) -> None:
        """Warn, once, when a model is used with an adapter that was trained on other weights."""
        if adapter is not None and self.describe.bases is not None:
            self.describe.bases.warn(model, adapter, self.log)

    def default_draft(self, model: ModelDetails, *, unloads: bool = False) -> str | None:
        """Return the reference of the draft model in a model's profile; None when the profile names none.

        Args:
            model: The model.
            unloads: Whether idle models are unloaded, so that pinning has an effect.

        Raises:
            CapabilityError: The profile names a draft model, or pins the model, and the model does not support that.
        """
        description = model.description
        profile = self.profile_of(description.handle)
        reference = profile.draft_reference
        if description.operation is not Capability.TEXT_GENERATION and (
            reference is not None or (profile.pins and unloads)
        ):
            setting = "pin" if reference is None else "draft_model"
            raise CapabilityError(f"{setting}: '{description.handle.label}' generates no text.")
        if reference is not None and (description.can(Capability.VISION) or description.can(Capability.AUDIO)):
            raise CapabilityError("draft_model: models for images and sound take no draft model.")
        return reference

    def __call__(
        self, model: str | ModelDetails, prompts: Sequence[Prompt], options: GenerationOptions
    ) -> tuple[TextStream, ...]:
        """Start ``options.choices`` completions of each prompt; those of one prompt are adjacent.

        Args:
            model: A reference as the user typed it, or the details of a model that the caller has resolved and checked.
            prompts: At least one.
            options: How to generate.

        Raises:
            ValidationError: A setting is out of range, the reference is malformed, or media cannot be read.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            ParameterNotSupportedError: Several choices are requested for several chunks of images.
            InsufficientMemoryError: The model is beyond the memory budget, and the prompt has media or
                ``options.strict_memory`` is set.
            MlxkError: See ``TextGenerator.submit``; ``detail`` has the ``index`` of the prompt if there are several.
        """
        if isinstance(model, str):
            options.settings.validate()
        details = self._find(model, prompts, options) if isinstance(model, str) else model
        description = details.description
        prompts, options = options.with_profile(self.profile_of(description.handle), details, prompts)
        options = self._with_activations(details, self._with_draft_model(options))
        self.compare_base(description.handle, options.engine_options.adapter)
        # A text model beyond the budget is slow, since it pages. A vision or audio encoder allocates its memory at
        # once, and the system kills a process for which there is not enough.
        has_media = _require_media(description, prompts)
        warn = None if has_media or options.strict_memory else self.log
        held, cache = self.held(description), options.engine_options
        require_memory(held, self.memory, warn, lambda: self.generator.state(STATE_SECONDS).models, cache)
        started: list[TextStream] = []
        try:
            for prompt in prompts:
                for stream in self._complete(description, prompt, options):
                    started.append(stream)
        except BaseException as error:
            for stream in started:
                stream.cancel()
            if len(prompts) > 1 and isinstance(error, MlxkError):
                error.detail = {**(error.detail or {}), "index": len(started) // options.choices}
            raise
        return tuple(started)

    def require(self, reference: str, options: GenerationOptions) -> None:
        """Check model and options as a call would, without a prompt and without loading; raises the same errors."""
        options.settings.validate()
        details = self._find(reference, (), options)
        _, options = options.with_profile(self.profile_of(details.description.handle), details, ())
        self._with_draft_model(options)

    def requests(
        self, model: str | ModelDetails, prompt: Prompt, options: GenerationOptions
    ) -> Iterator[GenerationRequest]:
        """Yield the generator's requests for one prompt: one, or one for each chunk of images.

        Raises:
            MlxkError: As for a call, without ``InsufficientMemoryError``.
        """
        if isinstance(model, str):
            options.settings.validate()
            model = self._find(model, [prompt], options)
        (prompt,), options = options.with_profile(self.profile_of(model.description.handle), model, [prompt])
        _require_media(model.description, [prompt])
        for each, _ in self._prompts(model.description, prompt, options):
            yield self._request(model.description, each, options)

    def prepare_images(self, reference: str, sources: Sequence[ImageSource], first: int) -> tuple[PreparedImage, ...]:
        """Decode images for a later message of a conversation, numbered from ``first``.

        Raises:
            ValidationError: A file cannot be read.
            CapabilityError, UnhealthyModelError, IncompatibleModelError: The model takes no such media, or cannot run.
        """
        description = self.describe(self.resolve(reference))
        require_text_model(description)
        require_vision(description)
        numbered = [
            self._media.numbered_image(read(), number, facts=True) for number, read in enumerate(sources, first)
        ]
        return tuple(PreparedImage(each, self.images.decode(each.image)) for each in numbered)

    def prepare_video(self, reference: str, video: EncodedVideo, number: int) -> ShownVideo:
        """Decode a clip for a later message of a conversation, with its number; raises as ``prepare_images``."""
        description = self.describe(self.resolve(reference))
        require_text_model(description)
        require_vision(description, clips=True)
        return self._media.numbered_video(video, number, facts=True)

    def prepare_recording(self, reference: str, recording: Recording) -> MessagePart:
        """Decode a recording for a later message of a conversation; raises as ``prepare_images``."""
        description = self.describe(self.resolve(reference))
        require_text_model(description)
        require_audio_input(description)
        return self._media.decode(recording)

    def _find(self, reference: str, prompts: Sequence[Prompt], options: GenerationOptions) -> ModelDetails:
        details = self.describe.details(self.resolve(reference))
        require_text_model(details.description)
        has_tools = any(isinstance(each, (Conversation, IncomingConversation)) and each.tools for each in prompts)
        if has_tools and options.strict_capabilities:
            require_tools(details)
        if options.thinking:
            require_reasoning(details, "thinking")
        return details

    def _with_draft_model(self, options: GenerationOptions) -> GenerationOptions:
        if options.draft_reference is None:
            return options
        try:
            draft = self.resolve(options.draft_reference)
            require_draft_model(self.describe.details(draft), options.draft_kind)
        except MlxkError as error:
            if options.engine_options.draft_required:
                raise
            self.log.warning("a default draft model is not used", model=options.draft_reference, reason=error.message)
            return options
        return attrs.evolve(options, engine_options=attrs.evolve(options.engine_options, draft_model=draft))

    def _with_activations(self, model: ModelDetails, options: GenerationOptions) -> GenerationOptions:
        """Refuse quantized activations that this machine lacks, and drop them where the weights make them useless."""
        if not options.engine_options.quantize_activations:
            return options
        self.describe.registry.require_quantized_activations()
        quantization = model.quantization
        if quantization is not None and quantization.mode in ACTIVATION_MODES:
            return options
        reason = f"the weights are quantized neither as {' nor as '.join(ACTIVATION_MODES)}"
        self.log.warning("activations are not quantized", model=model.description.handle.label, reason=reason)
        return attrs.evolve(options, engine_options=attrs.evolve(options.engine_options, quantize_activations=None))

    def _complete(
        self, description: ModelDescription, prompt: Prompt, options: GenerationOptions
    ) -> Iterator[TextStream]:
        prompts = self._prompts(description, prompt, options)
        if not _is_chunked(description, prompt, options):
            for each, table in prompts:
                for stream in self._submit(description, each, options):
                    if table is not None and options.image_tables:
                        stream = ChunkedStream(DescribedChunk(table, stream), iter(()))
                    yield stream
            return
        if options.choices > 1:
            raise ParameterNotSupportedError.in_field(
                "n",
                "there is one answer to more images than are shown together",
                hint=f"Leave n out, or show up to {MAX_CHUNK} together with chunk.",
            )
        chunks = (
            DescribedChunk(chunk, stream)
            for each, chunk in prompts
            if chunk is not None
            for stream in self._submit(description, each, options)
        )
        yield ChunkedStream(next(chunks), chunks, tables=options.image_tables)

    def _prompts(
        self, description: ModelDescription, prompt: Prompt, options: GenerationOptions
    ) -> Iterator[tuple[str | TokenIds | Conversation, Chunk | None]]:
        """Yield the prompts that the model gets, each with the chunk whose table precedes its completion."""
        if not isinstance(prompt, IncomingConversation):
            yield prompt, None
        elif not description.can(Capability.VISION):
            messages = tuple(self._media.without_images(each) for each in prompt.messages)
            yield Conversation(messages, prompt.tools), None
        elif _is_chunked(description, prompt, options):
            yield from self._chunk_prompts(prompt, options)
        else:
            numbers = ImageNumbers()
            require_few_videos(sum(len(each.videos) for each in prompt.messages), prompt.images_field)
            facts = options.image_facts
            decoded = [self._media.with_images(each, numbers, facts) for each in messages_with_images(prompt)]
            conversation = Conversation(tuple(message for message, _ in decoded), prompt.tools)
            check_frames(conversation.videos, prompt.images_field)
            yield conversation, None if options.settings.grammar else decoded[-1][1]

    def _submit(
        self, description: ModelDescription, prompt: str | TokenIds | Conversation, options: GenerationOptions
    ) -> Iterator[TextStream]:
        for each in self._request(description, prompt, options).choices(options.choices):
            yield self.generator.submit(each)

    def _request(
        self, description: ModelDescription, prompt: str | TokenIds | Conversation, options: GenerationOptions
    ) -> GenerationRequest:
        request = GenerationRequest(
            description.handle,
            prompt,
            options.settings,
            options.thinking,
            options.engine_options,
            effort=options.effort,
            parse_special=options.parse_special,
            template_options=options.template_options,
            thinking_tags=options.thinking_tags,
            is_abandoned=options.is_abandoned,
            context_limit=options.context_limit,
            keep_alive_seconds=options.keep_alive_seconds,
            alternatives_limit=options.alternatives_limit,
            tenant=options.tenant,
        )
        return request.routed(description.runtime.backends)

    def _chunk_prompts(
        self, prompt: IncomingConversation, options: GenerationOptions
    ) -> Iterator[tuple[Conversation, Chunk]]:
        """Yield one conversation for each chunk of the last message's images: the system prompt and that message."""
        *earlier, last = prompt.messages
        check_together(
            [len(image.data) for each in prompt.messages for image in encoded_images(each)], prompt.images_field
        )
        numbers = ImageNumbers()
        for each in earlier:
            numbers.read(each.message.content if each.message.role is Role.ASSISTANT else "")
            for image in encoded_images(each):
                numbers.of(image)
        opening = [each.message for each in earlier if each.message.role is Role.SYSTEM]
        others = [self._media.decode(part) for part in last.parts if not is_visual(part)]
        count = -(-len(last.images) // options.chunk)
        for index in range(count):
            part = last.images[index * options.chunk : (index + 1) * options.chunk]
            images = [each if isinstance(each, EncodedImage) else each() for each in part]
            check_together([len(image.data) for image in images], prompt.images_field)
            chunk = Chunk(self._media.numbered_images(images, numbers, options.image_facts), index + 1, count)
            message = chunk.message([*map(self.images.decode, images), *others])
            yield Conversation((*opening, message), prompt.tools), chunk


def _require_media(description: ModelDescription, prompts: Sequence[Prompt]) -> bool:
    """Refuse a model that cannot take the images, clips or audio of the prompts; return whether there are any.

    Encoded images and clips count in the last message only: a model without vision gets a note in place of earlier
    ones.

    Raises:
        CapabilityError: It cannot take them.
    """
    images = clips = audio = False
    for prompt in prompts:
        if isinstance(prompt, Conversation):
            images = images or bool(prompt.images)
            clips = clips or bool(prompt.videos)
            audio = audio or bool(prompt.audio)
        elif isinstance(prompt, IncomingConversation):
            last, decoded = prompt.messages[-1], [each.message for each in prompt.messages]
            images = images or bool(last.images) or any(each.images for each in decoded)
            clips = clips or bool(last.videos) or any(each.videos for each in decoded)
            audio = audio or any(each.has_audio for each in prompt.messages)
    if images or clips:
        require_vision(description, clips=not images)
    if audio:
        require_audio_input(description)
    return images or clips or audio


def _is_chunked(description: ModelDescription, prompt: Prompt, options: GenerationOptions) -> bool:
    """Whether the last message of a prompt has more images than one chunk, so that it is divided into chunks.

    Raises:
        ValidationError: The chunk size is out of range, or there are too many images beside a clip.
    """
    if not isinstance(prompt, IncomingConversation) or not description.can(Capability.VISION):
        return False
    check_chunk(options.chunk)
    last = prompt.messages[-1]
    if last.videos:
        if len(last.images) > MAX_CHUNK:
            fault = f"{len(last.images)} images are too many beside a clip, with which all of them are shown"
            raise ValidationError.in_field(prompt.images_field, fault, hint=f"At most {MAX_CHUNK} are taken.")
        return False
    return len(last.images) > options.chunk
