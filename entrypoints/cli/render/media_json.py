"""JSON of transcripts and embeddings, with the field names of ``contracts/``."""

import json
from collections.abc import Mapping

from mlxk.application.use_cases.embed_text import EmbeddingResult
from mlxk.domain.transcription import Segment, SpeechTask, TimedWord, Transcript

Json = dict[str, object]


def answered(reference: str, prompt: str, transcript: Transcript, translated: bool) -> Json:
    """Return the data of ``run --audio``."""
    return {
        "model": reference,
        "prompt": prompt,
        "response": transcript.text,
        "finish_reason": "stop",
        "transcript": transcribed(transcript, translated),
    }


def as_json(transcript: Transcript, translated: bool) -> str:
    """Return a transcript as JSON text."""
    return json.dumps(transcribed(transcript, translated), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def transcribed(transcript: Transcript, translated: bool) -> Json:
    """Return a transcript as a JSON object."""
    return {
        "task": (SpeechTask.TRANSLATE if translated else SpeechTask.TRANSCRIBE).value,
        "language": transcript.language,
        "duration_seconds": round(transcript.seconds, 3),
        "text": transcript.text,
        "segments": [_segment(each) for each in transcript.segments],
    }


def embedded(fields: Mapping[str, object], index: int, result: EmbeddingResult) -> Json:
    """Return one record of ``embed``: the fields of an input, by its index, the embedding and its metadata."""
    vector = result.embeddings.vectors[index]
    cut = next((each for each in result.embeddings.truncations if each.index == index), None)
    return {
        **fields,
        # Nine significant digits are enough for 32-bit floats.
        "embedding": [float(f"{value:.9g}") for value in vector],
        "metadata": {
            "model": result.model,
            "dimensions": len(vector),
            "content_hash": result.content_hash,
            "device": result.embeddings.device,
            **({"truncated": {"tokens": cut.tokens, "kept": cut.kept}} if cut else {}),
        },
    }


def _segment(segment: Segment) -> Json:
    fields: Json = {
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text.strip(),
    }
    if segment.speaker is not None:
        fields["speaker"] = segment.speaker
    if segment.words:
        fields["words"] = [_word(each) for each in segment.words]
    return fields


def _word(word: TimedWord) -> Json:
    return {
        "word": word.text.strip(),
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "probability": None if word.probability is None else round(word.probability, 4),
    }
