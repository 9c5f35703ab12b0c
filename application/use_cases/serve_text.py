"""Start the answers to one request of a client: judge the model and the memory, then submit one answer a choice.

Nothing loaded is touched before everything about the request is known to be right.
"""

from collections.abc import Sequence

import attrs

from mlxk.application.policy import require_audio_input, require_vision
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.application.ports.text_generator import TextGenerator, TextStream
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue, ServedModel
from mlxk.domain.errors import Advice, CapabilityError, InsufficientMemoryError, Remedy
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.memory import MemoryFit, judge_memory


@attrs.frozen
class ServeText:
    """Answers requests of clients."""

    catalogue: ServeCatalogue
    generator: TextGenerator
    memory: MemoryProbe
    log: EventLog
    strict_memory: bool = False
    """Whether a model beyond the memory budget is refused instead of run slowly."""

    def __call__(
        self, model: ServedModel, requests: Sequence[GenerationRequest], alternatives: int = 1
    ) -> tuple[TextStream, ...]:
        """Start the answers, those to the same request side by side.

        Args:
            model: As the catalogue found it.
            requests: One a prompt.
            alternatives: Answers to each.

        Raises:
            ValidationError: A setting is out of range.
            CapabilityError: The model has no template for conversations, or cannot take the images or sound in one.
            InsufficientMemoryError: It is beyond the budget, and that is refused here.
            ContextLengthError, ExecutionError: See ``TextGenerator.submit``.
        """
        for request in requests:
            request.validate()
            if isinstance(request.prompt, Conversation) and not model.can_chat:
                raise CapabilityError(f"'{model.id}' has no chat template", hint=Advice(Remedy.USE_COMPLETIONS))
        images = any(request.has_images for request in requests)
        sounds = any(request.has_audio for request in requests)
        if images:
            require_vision(model.description)
        if sounds:
            require_audio_input(model.description)
        self._judge_memory(model, strict=images or sounds or self.strict_memory)
        streams: list[TextStream] = []
        try:
            for request in requests:
                routed = request.routed(model.description.runtime.backends)
                streams.extend(self.generator.submit(each) for each in routed.choices(alternatives))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return tuple(streams)

    def _judge_memory(self, model: ServedModel, strict: bool) -> None:
        verdict = judge_memory(self.memory.read(), model.description.size_bytes)
        if verdict.fit is not MemoryFit.EXCEEDS or model.id in self.catalogue.loaded():
            return
        numbers = {"needed_bytes": verdict.needed, "budget_bytes": verdict.budget}
        if strict:
            raise InsufficientMemoryError(f"'{model.id}' does not fit into this machine's memory", detail=numbers)
        self.log.warning("the model exceeds this machine's memory budget; expect swapping", model=model.id, **numbers)
