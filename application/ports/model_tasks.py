"""Ports: what a loaded model does besides generating text: tokenize, embed, rerank, transcribe, and speak."""

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
    """How the conversation was fitted to the template."""
    approximation: str | None = None
    """A sentence about how the tokens differ from those that a model computes; None when they do not."""

    @property
    def notes(self) -> tuple[str, ...]:
        """All that is to say, a sentence each."""
        sentences = tuple(each.sentence for each in self.adaptations)
        return sentences if self.approximation is None else (*sentences, self.approximation)


@attrs.frozen
class TokenSpelling:
    """One token as the vocabulary has it."""

    name: str
    """Its entry in the vocabulary, such as ``Ġworld``; empty for a token without one."""
    utf8: bytes
    """Its bytes within a text, possibly a part of a character."""


@attrs.frozen
class EndToken:
    """A token that ends an answer."""

    token: int
    text: str
    """Empty when the vocabulary does not have it."""
    sources: tuple[str, ...]
    """What names it: ``generation_config``, ``config``, ``tokenizer``, ``template``."""


@attrs.frozen
class FittedConversation:
    """One kind of conversation, and what has to be done for the chat template to take it."""

    kind: str
    steps: tuple[str, ...]
    """Codes of adaptations, and names of other forms of the same content."""
    refusal: str | None = None
    """Why it cannot be rendered, whatever is done; None when it can."""


@attrs.frozen
class CallSample:
    """A tool call as the chat template writes it."""

    text: str
    read: bool
    """Whether it is read as the same call."""


@attrs.frozen
class FormatReport:
    """What a model's chat template and tokenizer were found to do."""

    chat_template: bool
    reasoning: tuple[str, str] | None
    """What begins and ends reasoning; None when it is not marked."""
    call_syntaxes: tuple[str, ...]
    """Names of the model's own syntaxes of tool calls."""
    reads_tools: bool
    """Whether the template shows tools to the model."""
    switches: tuple[str, ...]
    """Variables that switch reasoning on or off, or limit it."""
    effort_levels: tuple[str, ...]
    """From least to most."""
    ends: tuple[EndToken, ...]
    control_tokens: tuple[str, ...]
    """Those that stay text where messages spell them, sorted."""
    conversations: tuple[FittedConversation, ...]
    call: CallSample | None
    """None when the template reads no tools, or writes no call."""
    problems: tuple[str, ...]
    """What is wrong, a sentence each."""


class ModelTokenizer(Protocol):
    """Renders and tokenizes with the tokenizers of models. Thread-safe; waits for no completion.

    The tokenizer of a loaded model is used; of any other model its tokenizer alone is loaded, and the last few of those
    stay in memory.

    Every method raises ``UnhealthyModelError``, ``IncompatibleModelError``, ``UntrustedModelCodeError``,
    ``BackendNotInstalledError`` or ``ExecutionError`` when the tokenizer cannot be loaded.
    """

    @abstractmethod
    def render(self, request: GenerationRequest, *, opens_answer: bool = True) -> TokenizedText:
        """Return the prompt of a request.

        Args:
            request: Its settings have no effect.
            opens_answer: Whether the prompt of a conversation ends with the beginning of the assistant's message.

        Raises:
            ValidationError: The chat template refuses the conversation, or a token does not exist.
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
            add_special: Whether to begin with the beginning-of-sequence token if the model's prompts do.
            parse_special: Whether the texts of control tokens become these tokens, and not the characters' tokens.

        Raises:
            ContextLengthError: As ``render`` does.
        """

    @abstractmethod
    def decode(self, model: ModelHandle, tokens: TokenIds) -> TokenizedText:
        """Return the text of some tokens, that of control tokens included.

        Raises:
            ValidationError: A token does not exist; the message names ``tokens``.
        """

    @abstractmethod
    def report(self, model: ModelHandle) -> FormatReport:
        """Return what the model's chat template and tokenizer do, found by rendering conversations of every kind."""

    @abstractmethod
    def spell(self, model: ModelHandle, tokens: TokenIds) -> tuple[TokenSpelling, ...]:
        """Return the spelling of each of some tokens that exist."""


class TextEmbedder(Protocol):
    """Runs embedding models, loading them on request. Thread-safe."""

    @abstractmethod
    def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Return the embeddings of texts, normalised to length one.

        The embedding of a text does not depend on the other texts of the request.

        Raises:
            ValidationError: The request is out of range, the model does not support the number of dimensions, or a
                token is not in its vocabulary.
            CapabilityError: The model does not support instructions.
            ContextLengthError: A text is longer than the context window, and truncation was not requested.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError, BackendNotInstalledError: The model
                cannot be loaded.
            ExecutionError: Loading or computing failed for another reason.
        """


class DocumentReranker(Protocol):
    """Runs rerankers, loading them on request. Thread-safe."""

    @abstractmethod
    def rerank(self, request: RerankRequest) -> Relevances:
        """Return how relevant each document is to the query.

        The relevance of a document does not depend on the other documents of the request.

        Raises:
            ValidationError: The request is out of range.
            CapabilityError: The model takes no instruction.
            ContextLengthError: The query leaves no room for a document; or a document is longer than the context
                window, and truncation is off.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError, BackendNotInstalledError: The model
                cannot be loaded.
            ExecutionError: Loading or computing failed for another reason.
        """


class SpeechTranscriber(Protocol):
    """Runs speech models, loading them on request."""

    @abstractmethod
    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        """Transcribe a recording.

        Work starts with the first event that is requested. Closing the generator stops it.

        Yields:
            Any number of ``TranscriptionProgress``, the segments of which are final, then exactly one ``Transcript``.

        Raises:
            ValidationError: A setting is out of range, or the file is missing, empty, too large, too long or not audio.
            CapabilityError: The model does not support the language, a language option, a prompt, or word timestamps.
            BackendNotInstalledError: The package or program that is needed is not installed.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError: The model cannot be loaded.
            ExecutionError: Loading or transcribing failed for another reason.
        """


class SpeechSynthesizer(Protocol):
    """Runs models that speak, loading them on request."""

    @abstractmethod
    def synthesize(self, request: SynthesisRequest) -> Generator[SpeechEvent, None, None]:
        """Speak a text, sentence by sentence.

        Work starts with the first event that is requested. Closing the generator stops it. The parts follow each other
        without clicks: where the text is divided, the sound is zero. The file of a recording whose voice is imitated is
        read before the first event, and nothing of it is kept after the last one.

        Yields:
            One ``SpeechBegun``, any number of ``SpokenPart``, then exactly one ``SpeechEnded``.

        Raises:
            ValidationError: A setting is out of range, or the text has nothing that could be spoken; the recording is
                no sound, silent, too short or too long, or the model needs to know what is said in it.
            CapabilityError: The model does not imitate voices.
            BackendNotInstalledError: A package that is needed is not installed.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError: The model cannot be loaded.
            ExecutionError: Loading or speaking failed for another reason.
        """
