"""Chat with a recording in it, for models that listen and do nothing else: the answer is what was said."""

import io

from mlxk.application.heard_answer import HeardAnswer
from mlxk.application.ports.clock import Clock
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue, ServedModel, require_served_model
from mlxk.application.use_cases.transcribe_audio import Recording, TranscribeAudio, require_speech_model
from mlxk.domain.capabilities import Capability
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation import GenerationRequest
from mlxk.domain.speech import TranscriptionSettings
from mlxk.entrypoints.http.answers.answering import Asked
from mlxk.entrypoints.http.answers.chat import ChatShape
from mlxk.entrypoints.http.requests.audio import Upload
from mlxk.entrypoints.http.requests.chat import ChatRequest
from mlxk.entrypoints.http.requests.faults import Fault, raise_for
from mlxk.entrypoints.http.requests.messages import AudioPart, TextPart
from mlxk.entrypoints.http.requests.sounds import NAME, read_base64


class SpokenQuestions:
    """Turns chat requests to speech models into questions to answer.

    Args:
        catalogue: Finds the model.
        transcribe: Listens.
        clock: Measures.
    """

    def __init__(self, catalogue: ServeCatalogue, transcribe: TranscribeAudio, clock: Clock) -> None:
        self._catalogue = catalogue
        self._transcribe = transcribe
        self._clock = clock

    def asked(self, chat: ChatRequest) -> Asked | None:
        """Return what to answer; None when the model writes text by itself.

        Raises:
            CapabilityError: The model only listens, and there is nothing to listen to.
            ValidationError, ParameterNotSupportedError: Names every field at fault.
        """
        model = self._catalogue.find(chat.model, require_served_model)
        if model.description.can(Capability.TEXT_GENERATION) or not model.description.can(Capability.AUDIO):
            return None
        require_speech_model(model.description)
        settings, sound = self._understood(chat, model)
        return Asked(
            model=model,
            model_name=chat.model,
            requests=(GenerationRequest(model.handle, settings.hint or ""),),
            alternatives=1,
            shape=ChatShape(),
            id_prefix="chatcmpl",
            stream=bool(chat.stream),
            include_usage=chat.include_usage,
            extra={"metadata": chat.metadata} if chat.metadata else {},
            start=lambda: (self._hear(model, sound, settings),),
        )

    def _understood(self, chat: ChatRequest, model: ServedModel) -> tuple[TranscriptionSettings, bytes]:
        content = chat.messages[-1].content
        parts = list(enumerate(content)) if isinstance(content, list) else []
        place = f"messages[{len(chat.messages) - 1}].content"
        sounds = [(index, part) for index, part in parts if isinstance(part, AudioPart)]
        if not sounds:
            raise CapabilityError(
                f"'{model.id}' only listens; the last message has no input_audio",
                hint="Send a recording as a part of the type input_audio, or use /v1/audio/transcriptions.",
            )
        unsupported = {"n": (chat.n or 1) > 1, "tools": bool(chat.offered), "logprobs": bool(chat.logprobs)}
        unsupported["response_format"] = chat.response_format is not None and chat.response_format.type != "text"
        faults = [
            Fault(name, "is not supported by a model that listens", unsupported=True)
            for name, wrong in unsupported.items()
            if wrong
        ]
        if len(sounds) > 1:
            faults.append(Fault(f"{place}[{sounds[1][0]}]", "only one recording at a time"))
        raise_for(faults)
        said = " ".join(part.text for _, part in parts if isinstance(part, TextPart)).strip()
        settings = TranscriptionSettings(hint=said or None, temperature=chat.temperature or 0.0)
        settings.validate()
        return settings, read_base64(sounds[0][1].input_audio.data, f"{place}[{sounds[0][0]}].input_audio.data")

    def _hear(self, model: ServedModel, sound: bytes, settings: TranscriptionSettings) -> TextStream:
        upload = Upload()
        try:
            upload.receive(io.BytesIO(sound), NAME)
            events = self._transcribe.listen(model.description, Recording(upload.path, upload.name), settings)
            return HeardAnswer(events, self._clock, upload.close)
        except BaseException:
            upload.close()
            raise
