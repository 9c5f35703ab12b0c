"""What faster-whisper hears, as JSON: ``reference.py MODEL FILE…``; greedily, as mlxk does."""

import json
import sys

from faster_whisper import WhisperModel

model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32", local_files_only=True)
heard = []
for path in sys.argv[2:]:
    segments, _ = model.transcribe(path, language="en", beam_size=1, temperature=0.0)
    heard.append([[round(each.start, 2), round(each.end, 2), each.text.strip()] for each in segments])
print(json.dumps(heard))  # noqa: T201 - the answer of this program
