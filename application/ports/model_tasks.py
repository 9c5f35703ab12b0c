"""Ports for the tasks of models besides text generation: tokenize, embed, rerank, transcribe, and speak."""

from abc import abstractmethod
from collections.abc import Generator
from typing import Protocol

import attrs

from mlxk.domain.embedding import EmbeddingRequest, Embeddings
from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.generation.request import GenerationRequest, TokenIds
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.reranking import Relevances, RerankRequest
from mlxk.domain.synthesis import SpeechEvent, SynthesisRequest
from mlxk.domain.transcription import TranscriptEvent, TranscriptionRequest


@attrs.frozen
class TokenizedText:
    """A text and its tokens."""

    text: str
    tokens: TokenIds
    context_length: int | None = None
    """Tokens of the model's context window; None when unknown."""
    adaptations: tuple[Adaptation, ...] = ()
    """How the conversation was adapted to the chat template."""
    approximation: str | None = None
    """A sentence about how the tokens differ from those that the model computes; None when they do not."""

    @property
    def notes(self) -> tuple[str, ...]:
        """The adaptations and the approximation, one sentence each."""
        sentences = tuple(each.sentence for each in self.adaptations)
        return sentences if self.approximation is None else (*sentences, self.approximation)


@attrs.frozen
class TokenSpelling:
    """The vocabulary's spelling of one token."""

    name: str
    """Its entry in the vocabulary, such as ``Ġworld``; empty for a token without one."""
    utf8: bytes
    """Its bytes within a text, possibly a part of a character."""


@attrs.frozen
class EndToken:
    """An end-of-sequence token."""

    token: int
    text: str
    """Empty when the vocabulary does not have it."""
    sources: tuple[str, ...]
    """The files that name it: ``generation_config``, ``config``, ``tokenizer``, ``template``."""


@attrs.frozen
class FittedConversation:
    """One kind of conversation, and the adaptations with which the chat template renders it."""

    kind: str
    steps: tuple[str, ...]
    """Codes of adaptations, and names of other forms of the same content."""
    refusal: str | None = None
    """Why it cannot be rendered with any adaptation; None when it can."""


@attrs.frozen
class CallSample:
    """A tool call as the chat template renders it."""

    text: str
    read: bool
    """Whether the output parser reads the same call back from the text."""


@attrs.frozen
class FormatReport:
    """Findings about a model's chat template and tokenizer."""

    chat_template: bool
    """Whether the model has one."""
    reasoning: tuple[str, str] | None
    """The tags that begin and end reasoning; None when there are none."""
    call_syntaxes: tuple[str, ...]
    """Names of the tool-call syntaxes that the model uses."""
    reads_tools: bool
    """Whether the template renders tool definitions."""
    switches: tuple[str, ...]
    """Template variables that switch reasoning on or off, or limit it."""
    effort_levels: tuple[str, ...]
    """Reasoning efforts that the template distinguishes, from least to most."""
    ends: tuple[EndToken, ...]
    control_tokens: tuple[str, ...]
    """Control tokens that are treated as plain text when messages contain them, sorted."""
    conversations: tuple[FittedConversation, ...]
    call: CallSample | None
    """None when the template renders no tool definitions, or no calls."""
    problems: tuple[str, ...]
    """Defects of the template or the tokenizer, one sentence each."""


class ModelTokenizer(Protocol):
    """Renders and tokenizes with the tokenizers of models. Thread-safe; does not wait for running completions.

    For a loaded model its own tokenizer is used. For any other model only the tokenizer is loaded; the last few
    tokenizers loaded in this way are cached.

    Every method raises ``UnhealthyModelError``, ``IncompatibleModelError``, ``UntrustedModelCodeError``,
    ``BackendNotInstalledError`` or ``ExecutionError`` when the tokenizer cannot be loaded.
    """

    @abstractmethod
    def render(self, request: GenerationRequest, *, opens_answer: bool = True) -> TokenizedText:
        """Return the prompt of a request as text and tokens.

        Args:
            request: The model and the prompt; settings have no effect.
            opens_answer: Whether the prompt of a conversation ends with the opening of the assistant's message.

        Raises:
            ValidationError: The chat template refuses the conversation, or a token id is not in the vocabulary.
            CapabilityError: The template does not support what the request needs.
            ContextLengthError: The text certainly exceeds the context window; it is not tokenized completely.
        """

    @abstractmethod
    def encode(
        self, model: ModelHandle, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> TokenizedText:
        """Return the tokens of a text.

        Args:
            model: The model.
            text: Any text.
            add_special: Whether to begin with the beginning-of-sequence token, if the model's prompts begin with it.
            parse_special: Whether the spelling of a control token becomes that token; otherwise it is plain text.

        Raises:
            ContextLengthError: As for ``render``.
        """

    @abstractmethod
    def decode(self, model: ModelHandle, tokens: TokenIds) -> TokenizedText:
        """Return the text of a token sequence, control tokens included.

        Raises:
            ValidationError: A token id is not in the vocabulary; the error's field is ``tokens``.
        """

    @abstractmethod
    def report(self, model: ModelHandle) -> FormatReport:
        """Examine the model's chat template and tokenizer by rendering sample conversations of every kind."""

    @abstractmethod
    def spell(self, model: ModelHandle, tokens: TokenIds) -> tuple[TokenSpelling, ...]:
        """Return the spelling of each token. Every id must be in the vocabulary."""


class TextEmbedder(Protocol):
    """Runs embedding models, loading them on request. Thread-safe."""

    @abstractmethod
    def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Return the embeddings of texts and images, normalised to length one.

        An embedding does not depend on the other inputs of the request.

        Raises:
            ValidationError: The request is out of range, the model does not support the number of dimensions, or a
                token is not in its vocabulary.
            CapabilityError: The model does not take instructions.
            ContextLengthError: A text is longer than the context window, and truncation was not requested.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError, BackendNotInstalledError: The model
                cannot be loaded.
            ExecutionError: Loading or computing failed for another reason.
        """


class DocumentReranker(Protocol):
    """Runs rerankers, loading them on request. Thread-safe."""

    @abstractmethod
    def rerank(self, request: RerankRequest) -> Relevances:
        """Return a relevance score for each document.

        The score of a document does not depend on the other documents of the request.

        Raises:
            ValidationError: The request is out of range.
            CapabilityError: The model does not take instructions.
            ContextLengthError: The query leaves no tokens for a document; or query and document exceed the context
                window, and truncation was not requested.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError, BackendNotInstalledError: The model
                cannot be loaded.
            ExecutionError: Loading or computing failed for another reason.
        """


class SpeechTranscriber(Protocol):
    """Runs speech-to-text models, loading them on request."""

    @abstractmethod
    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        """Transcribe a recording.

        Nothing is computed, and no error raised, before the first event is requested. Closing the generator stops the
        transcription.

        Yields:
            Any number of ``TranscriptionProgress``, whose segments are final, then exactly one ``Transcript``.

        Raises:
            ValidationError: A setting is out of range, or the file is missing, empty, too large, too long or not audio.
            CapabilityError: The model does not support the language, a language option, a prompt, or word timestamps.
            BackendNotInstalledError: A required package or program is not installed.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError: The model cannot be loaded.
            ExecutionError: Loading or transcribing failed for another reason.
        """


class SpeechSynthesizer(Protocol):
    """Runs text-to-speech models, loading them on request."""

    @abstractmethod
    def synthesize(self, request: SynthesisRequest) -> Generator[SpeechEvent, None, None]:
        """Speak a text, sentence by sentence.

        Nothing is computed, and no error raised, before the first event is requested. Closing the generator stops the
        synthesis. The parts join without clicks: each begins and ends with the amplitude 0. A recording whose voice is
        cloned is read before the first event and dropped after the last one.

        Yields:
            One ``SpeechBegun``, any number of ``SpokenPart``, then exactly one ``SpeechEnded``.

        Raises:
            ValidationError: A setting is out of range, the text has no speakable characters, the recording is silent,
                too short, too long or not audio, or the model needs a transcript of it.
            CapabilityError: The model does not clone voices.
            BackendNotInstalledError: A required package is not installed.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError: The model cannot be loaded.
            ExecutionError: Loading or speaking failed for another reason.
        """
