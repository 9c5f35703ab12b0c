"""Speech over HTTP: the OpenAI SDK, every format, what is adapted, every refusal, and clients that leave."""

import base64
import http.client
import json
import wave
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from doubles.speech_synthesizer import RATE, SECONDS_PER_CHARACTER
from serving.contract import faults
from serving.parts import CHAT_MODEL, SPEECH_MODEL, VOICE, VOICE_MODEL, Parts
from serving.running import RunningServer, eventually

from mlxk.domain.errors import ExecutionError, ValidationError
from mlxk.domain.synthesis import pieces_of
from mlxk.entrypoints.settings import ServerSettings

TEXT = "This is a sentence that is long enough. And this is another one, which is not short."


@pytest.fixture
def parts() -> Parts:
    return Parts(models={VOICE_MODEL: VOICE})


@pytest.fixture
def server(parts: Parts) -> Iterator[RunningServer]:
    with RunningServer(parts) as running:
        yield running


@pytest.fixture
def sdk(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


Speak = Callable[..., tuple[int, dict[str, str], Any]]


@pytest.fixture
def speak(server: RunningServer) -> Speak:
    """Return a function that asks for speech, and returns status, headers and body, held against the contract."""
    return lambda **fields: server.post("/v1/audio/speech", {"model": VOICE_MODEL, "input": TEXT, **fields})


def length_of(text: str, rate: int, speed: float = 1.0) -> int:
    """Return the bytes of the PCM of a text."""
    return 2 * sum(int(len(piece) * SECONDS_PER_CHARACTER * rate / speed) for piece in pieces_of(text))


def test_the_sdk_streams_a_wav_file_into_a_file(sdk: openai.OpenAI, tmp_path: Any) -> None:
    target = tmp_path / "speech.wav"
    with sdk.audio.speech.with_streaming_response.create(
        model=VOICE_MODEL, voice="ryan", input=TEXT, response_format="wav"
    ) as response:
        response.stream_to_file(target)
    with wave.open(str(target)) as file:
        assert file.getframerate() == RATE
        assert 2 * file.getnframes() == length_of(TEXT, RATE)


def test_the_sdk_streams_pcm_as_it_is_spoken_at_the_rate_that_clients_assume(sdk: openai.OpenAI) -> None:
    with sdk.audio.speech.with_streaming_response.create(
        model=VOICE_MODEL, voice="ryan", input=TEXT, response_format="pcm"
    ) as response:
        assert response.headers["Content-Type"] == "audio/pcm"
        assert response.headers["Transfer-Encoding"] == "chunked"
        sound = b"".join(response.iter_bytes())
    assert len(sound) == length_of(TEXT, 24_000)


@pytest.mark.parametrize("kind", ["wav", "pcm", "mp3"])
def test_events_carry_the_same_sound_and_the_usage(kind: str, speak: Speak, parts: Parts) -> None:
    parts.encoder.kinds = {"mp3"}
    whole = speak(response_format=kind)[2]
    status, headers, body = speak(response_format=kind, stream_format="sse")
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
    *deltas, done = events
    assert [fault for each in deltas for fault in faults("/components/schemas/SpeechDelta", each)] == []
    assert faults("/components/schemas/SpeechDone", done) == []
    sound = b"".join(base64.b64decode(each["audio"]) for each in deltas)
    assert sound[44:] == whole[44:]
    assert len(sound) == len(whole)
    assert done["type"] == "speech.audio.done"
    words = len(TEXT.split())
    assert done["usage"]["input_tokens"] == words
    assert done["usage"]["total_tokens"] == words + done["usage"]["output_tokens"]


def test_without_a_format_mp3_is_made_where_it_can_be_and_else_wav_which_a_header_says(
    speak: Speak, parts: Parts
) -> None:
    status, headers, body = speak()
    assert (status, headers["content-type"], headers["x-mlxk-adaptations"]) == (200, "audio/wav", "format-wav")
    assert body.startswith(b"RIFF")
    parts.encoder.kinds = {"mp3"}
    status, headers, body = speak()
    assert (status, headers["content-type"], headers.get("x-mlxk-adaptations")) == (200, "audio/mpeg", None)
    assert body.startswith(b"mp3 ")


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("aac", "audio/aac"), ("flac", "audio/flac")],
)
def test_a_format_that_is_asked_for_is_made_or_refused_by_name(
    kind: str, media_type: str, speak: Speak, parts: Parts
) -> None:
    status, _, body = speak(response_format=kind)
    error = body["error"]
    assert (status, error["param"], error["code"]) == (400, "response_format", "parameter_not_supported")
    assert f"'{kind}' cannot be made on this server: there is no encoder; wav and pcm can" in error["message"]
    parts.encoder.kinds = {kind}
    status, headers, body = speak(response_format=kind)
    assert (status, headers["content-type"]) == (200, media_type)
    assert body.startswith(kind.encode())


def test_speed_voice_and_instructions_reach_the_model(parts: Parts, speak: Speak) -> None:
    assert len(speak(speed=2, response_format="pcm")[2]) == length_of(TEXT, 24_000, 2.0)
    speak(voice="NOVA", instructions="Speak slowly.")
    speak(voice={"id": "Ryan"})
    speak(voice=None)
    speak(voice="default")
    asked = [each.settings for each in parts.synthesizer.requests]
    assert [each.voice for each in asked] == ["nova", "nova", "ryan", "nova", "nova"]
    assert asked[1].instructions == "Speak slowly."


def test_a_standard_voice_that_the_model_has_not_is_its_usual_one_which_is_said(parts: Parts, speak: Speak) -> None:
    assert speak(voice=" Alloy ", response_format="wav")[1]["x-mlxk-adaptations"] == "voice-substituted"
    headers = speak(voice="alloy", response_format="wav")[1]
    assert headers["x-mlxk-adaptations"] == "voice-substituted"
    assert "x-mlxk-adaptations" not in speak(voice="nova", response_format="wav")[1]
    assert [each.settings.voice for each in parts.synthesizer.requests] == ["nova", "nova", "nova"]


def test_instructions_without_effect_are_said(speak: Speak) -> None:
    headers = speak(instructions="Whisper.", voice="alloy")[1]
    assert headers["x-mlxk-adaptations"] == "format-wav, voice-substituted, instructions-ignored"


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"input": ""}, 400, "input", "at least 1 characters"),
        ({"input": "?!"}, 400, "input", "no letter or digit"),
        ({"input": "a" * 16_385}, 400, "input", "at most 16384 characters"),
        ({"input": None}, 400, "input", "must be a string"),
        ({"voice": 3}, 400, "voice", "must be a string"),
        ({"voice": {"name": "x"}}, 400, "voice", "must be a string"),
        ({"voice": "bob"}, 422, "voice", "its voices are nova, ryan"),
        ({"speed": 5}, 400, "speed", "at most 4"),
        ({"speed": "fast"}, 400, "speed", "number"),
        ({"response_format": "ogg"}, 400, "response_format", "must be one of mp3"),
        ({"stream_format": "ndjson"}, 400, "stream_format", "must be one of audio, sse"),
        ({"instructions": "a" * 4097}, 400, "instructions", "at most 4096"),
        ({"ref_audio": "UklGRg=="}, 403, "ref_audio", "voices of recordings are not imitated on this server"),
        ({"ref_text": "what is said"}, 400, "ref_text", "ref_audio, which is missing"),
        ({"model": CHAT_MODEL}, 422, None, "does not speak"),
        ({"model": SPEECH_MODEL}, 422, None, "does not speak"),
        ({"model": "org/nowhere"}, 404, "model", "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    fields: dict[str, object], status: int, param: str | None, words: str, speak: Speak
) -> None:
    found, _, body = speak(**fields)
    error = body["error"]
    assert found == status
    assert param is None or error["param"] == param
    assert words in error["message"]


def test_an_empty_field_asks_for_nothing(speak: Speak) -> None:
    status, headers, sound = speak(response_format="", stream_format="", voice="", instructions="")
    assert status == 200, sound
    assert (sound.startswith(b"RIFF"), headers.get("x-mlxk-ignored-fields")) == (True, None)


def test_unknown_fields_are_named(speak: Speak) -> None:
    assert speak(lang_code="en", response_format="wav")[1]["x-mlxk-ignored-fields"] == "lang_code"


def test_a_failure_before_the_first_sound_has_a_status(parts: Parts, speak: Speak) -> None:
    parts.synthesizer.failure = ExecutionError("The model failed.")
    for stream in ("audio", "sse"):
        status, headers, body = speak(response_format="pcm", stream_format=stream)
        assert (status, headers["content-type"]) == (500, "application/json")
        assert body["error"]["message"] == "The model failed."


def test_what_the_model_refuses_is_passed_on_as_it_is(parts: Parts, speak: Speak) -> None:
    parts.synthesizer.failure = ValidationError("It cannot be spoken.")
    status, _, body = speak(response_format="wav")
    assert (status, body["error"]["message"], body["error"]["param"]) == (400, "It cannot be spoken.", None)
    assert parts.application._limit.admitted == 0


def test_a_failure_later_is_an_event_or_breaks_the_connection(
    parts: Parts, server: RunningServer, speak: Speak
) -> None:
    parts.synthesizer.late_failure = ExecutionError("The model failed.")
    last = json.loads(speak(response_format="pcm", stream_format="sse")[2].decode().strip().rpartition("data: ")[2])
    assert last["error"]["message"] == "The model failed."
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        speak(response_format="pcm")
    assert parts.application._limit.admitted == 0


def test_a_client_that_leaves_stops_the_speech(parts: Parts, server: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps({"model": VOICE_MODEL, "input": f"{TEXT} " * 60, "response_format": "pcm"})
    connection.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
    connection.getresponse().read(100)
    connection.close()
    assert eventually(lambda: parts.synthesizer.abandoned == 1)
    assert eventually(lambda: parts.application._limit.admitted == 0)


def test_a_full_server_refuses_and_counts(parts: Parts) -> None:
    full = Parts(settings=ServerSettings(max_streams=1, max_queue=0), models={VOICE_MODEL: VOICE})
    with RunningServer(full) as running:
        release = full.application._limit.enter(1)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
        with client, pytest.raises(openai.RateLimitError):
            client.audio.speech.create(model=VOICE_MODEL, voice="ryan", input="Hello.", response_format="wav")
        release()
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
        with client:
            client.audio.speech.create(model=VOICE_MODEL, voice="ryan", input="Hello.", response_format="wav")
        counted = f'mlxk_speech_seconds_count{{model="{VOICE_MODEL}",api="audio"}} 1'
        assert eventually(lambda: counted in full.application.metrics.render({}))
    (asked,) = [each for each in full.telemetry.served if each.operation == "speech" and each.error is None]
    assert (asked.model, asked.input_tokens) == (VOICE_MODEL, 1)


def test_models_list_their_voices(server: RunningServer, sdk: openai.OpenAI) -> None:
    listed = {each.id: each.model_dump() for each in sdk.models.list()}
    assert listed[VOICE_MODEL]["voices"] == ["nova", "ryan"]
    assert listed[VOICE_MODEL]["capabilities"] == ["text-to-speech"]
    assert "voices" not in listed[CHAT_MODEL]


def test_a_chat_with_a_voice_is_refused_with_the_address_for_speech(server: RunningServer) -> None:
    body = {"model": VOICE_MODEL, "messages": [{"role": "user", "content": "Hello!"}]}
    status, _, answer = server.post("/v1/chat/completions", body)
    assert (status, "/v1/audio/speech" in answer["error"]["hint"]) == (422, True)
