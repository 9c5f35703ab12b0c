"""Generate text: resolve the model, judge whether it may run, and start the answer.

Owns the order of the checks and the policy; which files say what is ``DescribeModel``'s knowledge, how tokens are made
is the generator's.
"""

import attrs

from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.application.ports.text_generator import TextGenerator, TextStream
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.capabilities import Capability
from mlxk.domain.conversation import Conversation
from mlxk.domain.errors import CapabilityError, IncompatibleModelError, UnhealthyModelError
from mlxk.domain.generation import GenerationRequest, GenerationSettings
from mlxk.domain.memory import MemoryFit, judge_memory
from mlxk.domain.model import ModelDescription


@attrs.frozen
class GenerateText:
    """Answers a prompt with a text model."""

    resolve: ResolveModel
    describe: DescribeModel
    generator: TextGenerator
    memory: MemoryProbe
    log: EventLog

    def __call__(self, reference: str, prompt: Conversation | str, settings: GenerationSettings) -> TextStream:
        """Start an answer.

        Raises:
            ValidationError: A setting is out of range, or the reference is malformed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            ContextLengthError, ExecutionError: See ``TextGenerator.submit``.
        """
        settings.validate()
        handle = self.resolve(reference)
        description = self.describe(handle)
        require_text_model(description)
        self._warn_of_memory(description)
        return self.generator.submit(GenerationRequest(handle, prompt, settings))

    def _warn_of_memory(self, description: ModelDescription) -> None:
        """Text models over budget are run all the same, since they page; the user is told what to expect."""
        verdict = judge_memory(self.memory.read(), description.size_bytes)
        if verdict.fit is MemoryFit.EXCEEDS:
            self.log.warning(
                "the model exceeds this machine's memory budget; expect swapping",
                model=description.handle.name,
                needed_bytes=verdict.needed,
                budget_bytes=verdict.budget,
            )


def require_text_model(description: ModelDescription) -> None:
    """Refuse a model that cannot generate text here, and say why.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is made for something else.
        IncompatibleModelError: No installed backend runs it.
    """
    name = description.handle.name
    if not description.health.healthy:
        raise UnhealthyModelError(
            f"'{name}' is damaged or incomplete: {description.health.reason}", hint=f"See: mlxk health {name}"
        )
    if Capability.TEXT_GENERATION not in description.capabilities:
        can = ", ".join(capability.value for capability in description.capabilities) or "nothing known"
        raise CapabilityError(f"'{name}' does not generate text; it can do: {can}")
    if not description.runtime.compatible:
        raise IncompatibleModelError(f"'{name}' cannot run here: {description.runtime.reason}")
