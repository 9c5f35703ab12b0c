"""Generate text: resolve the model, judge whether it may run, and start the answer.

Owns the order of the checks and the policy; what every model must pass stands in ``loading_requirements``. Which files
say what is ``DescribeModel``'s knowledge, how tokens are made is the generator's.
"""

import attrs

from mlxk.application.loading_requirements import abilities, require_loadable, require_memory
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.application.ports.text_generator import TextGenerator, TextStream
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.capabilities import Capability
from mlxk.domain.computation import Computation
from mlxk.domain.conversation import Conversation
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation import GenerationRequest, GenerationSettings
from mlxk.domain.model import ModelDescription, ModelDetails
from mlxk.domain.speech import SpeechTask, require_speech

_OTHER_WAYS = (
    (Capability.AUDIO, "Give it a recording: mlxk run --audio FILE, or /v1/audio/transcriptions."),
    (Capability.EMBEDDINGS, "Ask it for vectors: mlxk embed, or /v1/embeddings."),
)
"""What to do with models that do something else."""


@attrs.frozen
class Question:
    """What to ask a model, and how."""

    prompt: Conversation | str
    """A conversation; or text, given to the model as it is."""
    settings: GenerationSettings = attrs.field(factory=GenerationSettings)
    thinking: bool | None = None
    """Whether the model is to reason first; None leaves it to its chat template."""
    computation: Computation = attrs.field(factory=Computation)
    draft_reference: str | None = None
    """A smaller model that proposes tokens, as the user typed it."""
    strict_memory: bool = False
    """Whether a model beyond the memory budget is refused instead of run slowly."""


@attrs.frozen
class GenerateText:
    """Answers a prompt with a text model."""

    resolve: ResolveModel
    describe: DescribeModel
    generator: TextGenerator
    memory: MemoryProbe
    log: EventLog

    def __call__(self, reference: str, question: Question) -> TextStream:
        """Start an answer.

        Args:
            reference: The model, as the user typed it.
            question: What to ask it, and how.

        Raises:
            ValidationError: A setting is out of range, or the reference is malformed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: It is beyond the budget, and that is to be refused.
            ContextLengthError, ExecutionError: See ``TextGenerator.submit``.
        """
        question.settings.validate()
        return self.start(self.describe(self.resolve(reference)), question)

    def start(self, description: ModelDescription, question: Question) -> TextStream:
        """Start an answer of a model that was found already; see ``__call__``.

        Args:
            description: The model.
            question: What to ask it, and how.
        """
        require_text_model(description)
        self._require_template(description, question)
        computation = question.computation
        if question.draft_reference is not None:
            draft = self.resolve(question.draft_reference)
            require_text_model(self.describe(draft))
            computation = attrs.evolve(computation, draft_model=draft)
        handle = description.handle
        request = GenerationRequest(handle, question.prompt, question.settings, question.thinking, computation)
        request.validate()
        if request.shows_images:
            require_vision_model(description)
        if request.plays_sound:
            require_speech(handle.name, description.capabilities, SpeechTask.TRANSCRIBE)
        # Over budget, text models are run unless that is refused, since they page. About images and sound they are
        # refused: a tower takes memory in one piece, and a system without it is killed.
        strict = question.strict_memory or request.shows_images or request.plays_sound
        require_memory(description, self.memory, warn=None if strict else self.log)
        return self.generator.submit(request.routed(description.text_backends))

    def _require_template(self, description: ModelDescription, question: Question) -> None:
        """Refuse what the model's chat template would leave out; only then are its files read once more."""
        offers_tools = isinstance(question.prompt, Conversation) and bool(question.prompt.tools)
        if not offers_tools and not question.thinking:
            return
        details = self.describe.details(description.handle)
        if offers_tools:
            require_tools(details, hint="Leave out --tools, or choose a model that takes them; see: mlxk show MODEL")
        if question.thinking:
            hint = "Leave out --thinking, or choose a model that reasons; see: mlxk show MODEL"
            require_reasoning(details, "thinking", hint)


def require_vision_model(description: ModelDescription) -> None:
    """Refuse a model that cannot look at images, and say so.

    Raises:
        CapabilityError: It cannot.
    """
    if not description.can(Capability.VISION):
        raise CapabilityError(
            f"'{description.handle.name}' is a text model and cannot look at images",
            hint="Models that can have 'vision' among their capabilities; see: mlxk list",
        )


def require_tools(details: ModelDetails, hint: str) -> None:
    """Refuse tools to choose from where the model's chat template leaves them out.

    Args:
        details: Of the model.
        hint: What to do instead.

    Raises:
        CapabilityError: It does.
    """
    if details.template_read and not details.supports_tools:
        name = details.description.handle.label
        raise CapabilityError.in_field("tools", f"'{name}' cannot be told about tools", hint=hint)


def require_reasoning(details: ModelDetails, field: str, hint: str) -> None:
    """Refuse to have a model reason whose chat template cannot have it so; not to have it reason asks for nothing.

    Args:
        details: Of the model.
        field: How the request asks for it.
        hint: What to do instead.

    Raises:
        CapabilityError: It cannot.
    """
    if details.template_read and not details.supports_reasoning:
        name = details.description.handle.label
        raise CapabilityError.in_field(field, f"'{name}' cannot be told to reason", hint=hint)


def require_text_model(description: ModelDescription) -> None:
    """Refuse a model that cannot generate text here, and say why.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is made for something else.
        IncompatibleModelError: No installed backend runs it.
    """
    require_loadable(description, _require_text)


def _require_text(description: ModelDescription) -> None:
    if not description.can(Capability.TEXT_GENERATION):
        raise CapabilityError(
            f"'{description.handle.name}' does not generate text; it can do: {abilities(description)}",
            hint=next((hint for capability, hint in _OTHER_WAYS if description.can(capability)), None),
        )
