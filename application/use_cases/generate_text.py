"""Generate text: resolve the model, judge whether it may run, and start the answer.

Owns the order of the checks; what a model must pass stands in ``loading_requirements`` and ``model_requirements``.
Which files say what is ``DescribeModel``'s knowledge, how tokens are made is the generator's.
"""

import attrs

from mlxk.application.policy import (
    require_audio_input,
    require_memory,
    require_reasoning,
    require_text_model,
    require_tools,
    require_vision,
)
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.application.ports.text_generator import TextGenerator, TextStream
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.engine_options import EngineOptions
from mlxk.domain.generation.request import Effort, GenerationRequest, GenerationSettings
from mlxk.domain.models.model import ModelDescription


@attrs.frozen
class Question:
    """What to ask a model, and how."""

    prompt: Conversation | str
    """A conversation; or text, given to the model as it is."""
    settings: GenerationSettings = attrs.field(factory=GenerationSettings)
    thinking: bool | None = None
    """Whether the model is to reason first; None leaves it to its chat template."""
    effort: Effort | None = None
    """How much it is to reason; None leaves it to its chat template."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
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
        engine_options = question.engine_options
        if question.draft_reference is not None:
            draft = self.resolve(question.draft_reference)
            require_text_model(self.describe(draft))
            engine_options = attrs.evolve(engine_options, draft_model=draft)
        handle = description.handle
        request = GenerationRequest(
            handle, question.prompt, question.settings, question.thinking, engine_options, effort=question.effort
        )
        request.validate()
        if request.has_images:
            require_vision(description)
        if request.has_audio:
            require_audio_input(description)
        # Over budget, text models are run unless that is refused, since they page. About images and sound they are
        # refused: a tower takes memory in one piece, and a system without it is killed.
        strict = question.strict_memory or request.has_images or request.has_audio
        require_memory(description, self.memory, warn=None if strict else self.log)
        return self.generator.submit(request.routed(description.runtime.backends))

    def _require_template(self, description: ModelDescription, question: Question) -> None:
        """Refuse what the model's chat template would leave out; only then are its files read once more."""
        offers_tools = isinstance(question.prompt, Conversation) and bool(question.prompt.tools)
        if not offers_tools and not question.thinking:
            return
        details = self.describe.details(description.handle)
        if offers_tools:
            require_tools(details)
        if question.thinking:
            require_reasoning(details, "thinking")
