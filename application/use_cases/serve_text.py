"""Start the answers to one request of a client: judge the model and the memory, then submit one answer a choice.

Nothing loaded is touched before everything about the request is known to be right.
"""

from collections.abc import Sequence

import attrs

from mlxk.application.policy import require_audio_input, require_memory, require_vision
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.application.ports.text_generator import TextGenerator, TextStream
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue, ServedModel
from mlxk.domain.errors import Advice, CapabilityError, Remedy
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest


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
        strict = images or sounds or self.strict_memory
        require_memory(
            model.description, self.memory, None if strict else self.log, lambda: self.catalogue.loaded().values()
        )
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
