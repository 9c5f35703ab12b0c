"""The tasks of models besides text generation: load, tokenize, embed, rerank, transcribe, and speak."""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import attrs

from mlxk.application.generation_input import GenerationOptions, Prompt, Recording
from mlxk.application.policy import (
    require_embedding_model,
    require_memory,
    require_reranker,
    require_speech_model,
    require_voice,
)
from mlxk.application.ports.media import ImageReader
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.model_tasks import (
    DocumentReranker,
    FormatReport,
    ModelTokenizer,
    SpeechSynthesizer,
    SpeechTranscriber,
    TextEmbedder,
    TokenizedText,
    TokenSpelling,
)
from mlxk.application.ports.system import EventLog
from mlxk.application.ports.text_generator import STATE_SECONDS, TextGenerator
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, EmbeddingSettings, ImageInput, Input
from mlxk.domain.generation.media import EncodedImage
from mlxk.domain.generation.profile import Profile
from mlxk.domain.generation.request import GenerationRequest, TokenIds
from mlxk.domain.generation.settings import EngineOptions
from mlxk.domain.models.model import ModelDescription, ModelDetails, ModelHandle, Origin
from mlxk.domain.reranking import Relevances, RerankRequest, RerankSettings
from mlxk.domain.synthesis import SpeechEvent, SynthesisRequest, SynthesisSettings, chosen_voice
from mlxk.domain.transcription import TranscriptEvent, TranscriptionRequest, TranscriptionSettings


@attrs.frozen
class LoadModel:
    """Loads text models."""

    generator: TextGenerator
    memory: MemoryProbe
    log: EventLog
    profile_of: Callable[[ModelHandle], Profile] = lambda _: Profile()
    """Returns the profile of a model, which may name an adapter and pin the model."""
    compare_base: Callable[[ModelHandle, str | None], None] = lambda model, adapter: None
    """See ``GenerateText.compare_base``."""
    held: Callable[[ModelDescription], ModelDescription] = lambda model: model
    """Returns the share of a model that this machine holds when it is spread over several; by default all of it."""

    def __call__(
        self, model: ModelDescription, keep_alive_seconds: float | None = None, *, strict_memory: bool = False
    ) -> None:
        """Load a model and return once it is in memory.

        Args:
            model: A model that the caller has resolved and checked.
            keep_alive_seconds: Idle time after which it is unloaded; 0 unloads it at once, infinity never does, None
                leaves its present value. Ignored for a pinned model.
            strict_memory: Whether a model beyond the memory budget is refused; by default it is loaded with a warning.

        Raises:
            InsufficientMemoryError: It is beyond the memory budget and ``strict_memory`` is set.
            MlxkError: See ``TextGenerator.load``.
        """
        warn = None if strict_memory else self.log
        require_memory(self.held(model), self.memory, warn, lambda: self.generator.state(STATE_SECONDS).models)
        profile = self.profile_of(model.handle)
        keep_alive = profile.keep_alive_seconds if profile.pins else keep_alive_seconds
        adapter = profile.engine_options.adapter
        self.compare_base(model.handle, adapter)
        options = EngineOptions(adapter=adapter)
        request = GenerationRequest(model.handle, "", engine_options=options, keep_alive_seconds=keep_alive)
        self.generator.load(request.routed(model.runtime.backends))


@attrs.frozen
class TokenizeText:
    """Renders prompts, and encodes and decodes text."""

    generate: GenerateText
    tokenizer: ModelTokenizer

    def __call__(
        self, model: str | ModelDetails, prompt: Prompt, options: GenerationOptions, *, opens_answer: bool = True
    ) -> Sequence[TokenizedText]:
        """Return the prompts that a model would get, as text and tokens: one, or one for each chunk of images.

        Args:
            model: See ``GenerateText``.
            prompt: See ``GenerateText``.
            options: See ``GenerateText``; settings of sampling have no effect.
            opens_answer: See ``ModelTokenizer.render``.

        Raises:
            MlxkError: See ``GenerateText`` and ``ModelTokenizer.render``.
        """
        requests = self.generate.requests(model, prompt, options)
        return tuple(self.tokenizer.render(request, opens_answer=opens_answer) for request in requests)

    def encode(self, model: ModelHandle, text: str, *, add_special: bool, parse_special: bool) -> TokenizedText:
        """Return the tokens of a text; see ``ModelTokenizer.encode``."""
        return self.tokenizer.encode(model, text, add_special=add_special, parse_special=parse_special)

    def decode(self, model: ModelHandle, tokens: TokenIds) -> TokenizedText:
        """Return the text of tokens; see ``ModelTokenizer.decode``."""
        return self.tokenizer.decode(model, tokens)

    def report(self, model: ModelHandle) -> FormatReport:
        """Examine the model's chat template and tokenizer; see ``ModelTokenizer.report``."""
        return self.tokenizer.report(model)

    def spell(self, model: ModelHandle, tokens: TokenIds) -> tuple[TokenSpelling, ...]:
        """Return the spelling of each token; see ``ModelTokenizer.spell``."""
        return self.tokenizer.spell(model, tokens)


_FINGERPRINT_DIGITS = 8


@attrs.frozen
class EmbeddingResult:
    """Vectors and their model."""

    embeddings: Embeddings
    model: str
    """Its name, the same on every machine; vectors of different models cannot be compared."""
    content_hash: str | None
    """Identity of the exact weights, see ``ModelDescription``; None when unknown."""

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and the device that computed the vectors."""
        version = (self.content_hash or "nohash").removeprefix("sha256:")
        return f"{version[:_FINGERPRINT_DIGITS]}.{self.embeddings.device}"


@attrs.frozen
class EmbedText:
    """Embeds texts and images."""

    embedder: TextEmbedder
    memory: MemoryProbe
    images: ImageReader

    def __call__(
        self, model: ModelDescription, inputs: tuple[Input, ...], settings: EmbeddingSettings
    ) -> EmbeddingResult:
        """Embed texts and images.

        Args:
            model: A model that the caller has resolved.
            inputs: Texts, and encoded images.
            settings: How to embed them.

        Raises:
            ValidationError: The request is out of range, or an image cannot be decoded.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: The model is beyond the memory budget.
            ContextLengthError, ExecutionError: See ``TextEmbedder.embed``.
        """
        request = EmbeddingRequest(model.handle, inputs, settings)
        request.validate()
        require_embedding_model(model, images=any(isinstance(each, ImageInput) for each in inputs))
        require_memory(model, self.memory)
        request = attrs.evolve(request, inputs=tuple(_decoded(each, self.images) for each in inputs))
        return EmbeddingResult(self.embedder.embed(request), identity_of(model), model.content_hash)


Item = TypeVar("Item")


def _decoded(item: Item, images: ImageReader) -> Item:
    """Return an input with its image decoded; a text is returned unchanged."""
    if isinstance(item, ImageInput) and isinstance(item.image, EncodedImage):
        return attrs.evolve(item, image=images.decode(item.image))
    return item


def identity_of(description: ModelDescription) -> str:
    """Return a model's name without a path of this machine: for a workspace its source repository, if known."""
    handle, workspace = description.handle, description.workspace
    if handle.origin is not Origin.WORKSPACE:
        return handle.name
    return (workspace.source_repo if workspace else None) or handle.short_name


@attrs.frozen
class RerankDocuments:
    """Scores the relevance of documents to a query."""

    reranker: DocumentReranker
    memory: MemoryProbe
    images: ImageReader

    def __call__(
        self,
        model: ModelDescription,
        query: str | ImageInput,
        documents: tuple[str | ImageInput, ...],
        settings: RerankSettings,
    ) -> Relevances:
        """Return a relevance score for each document.

        Args:
            model: A model that the caller has resolved.
            query: A text, or an encoded image.
            documents: Texts, and encoded images.
            settings: How to rerank them.

        Raises:
            ValidationError: The request is out of range, or an image cannot be decoded.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: The model is beyond the memory budget.
            ContextLengthError, ExecutionError: See ``DocumentReranker.rerank``.
        """
        request = RerankRequest(model.handle, query, documents, settings)
        request.validate()
        require_reranker(model, images=request.has_images)
        require_memory(model, self.memory)
        return self.reranker.rerank(
            attrs.evolve(
                request,
                query=_decoded(query, self.images),
                documents=tuple(_decoded(each, self.images) for each in documents),
            )
        )


@attrs.frozen
class TranscribeAudio:
    """Transcribes recordings."""

    transcriber: SpeechTranscriber
    memory: MemoryProbe

    def __call__(
        self, model: ModelDescription, recording: Recording, settings: TranscriptionSettings
    ) -> Generator[TranscriptEvent, None, None]:
        """Check a request and return the generator of its events; see ``SpeechTranscriber.transcribe``.

        Args:
            model: A model that the caller has resolved.
            recording: The audio file.
            settings: How to transcribe.

        Raises:
            ValidationError: A setting is out of range.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: The model is beyond the memory budget.
        """
        settings.validate()
        require_speech_model(model, settings.task.capability)
        require_memory(model, self.memory)
        request = TranscriptionRequest(model.handle, recording.path, recording.name, settings)
        return self.transcriber.transcribe(request)


@attrs.frozen
class SpeakText:
    """Speaks texts."""

    synthesizer: SpeechSynthesizer
    memory: MemoryProbe

    def __call__(
        self, model: ModelDetails, text: str, settings: SynthesisSettings
    ) -> Generator[SpeechEvent, None, None]:
        """Check a request and return the generator of its events; see ``SpeechSynthesizer.synthesize``.

        Args:
            model: A model that the caller has resolved.
            text: The text to speak.
            settings: How to speak it; the name of a voice is case-insensitive.

        Raises:
            ValidationError: A setting is out of range, or the text has no speakable characters.
            UnhealthyModelError, IncompatibleModelError: The model cannot be loaded here.
            CapabilityError: The model cannot speak, cannot clone a voice, or has no voice of this name.
            InsufficientMemoryError: The model is beyond the memory budget.
        """
        description = model.description
        request = SynthesisRequest(description.handle, text, settings)
        request.validate()
        require_voice(description, cloning=settings.sample is not None)
        voice = None if settings.sample else chosen_voice(settings.voice, model.voices, description.handle.label)
        require_memory(description, self.memory)
        return self.synthesizer.synthesize(attrs.evolve(request, settings=attrs.evolve(settings, voice=voice)))
