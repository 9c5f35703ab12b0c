"""The chat page's module that reads answers aloud, run by node against a server, with a browser's sound in place."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from serving.parts import VOICE, VOICE_MODEL, Parts
from serving.running import RunningServer, eventually

from mlxk.domain.synthesis import pieces_of

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")

FILES = Path(__file__).parents[2] / "entrypoints" / "http" / "page_files"
TEXT = "This is a sentence that is long enough. And this is another one, which is not short."

BROWSER = """
const [files, server, model, text, stopAfter] = process.argv.slice(2);
const page = fetch;
globalThis.fetch = (path, options) => page(new URL(path, server), options);
globalThis.sessionStorage = { getItem: () => null };
const log = { starts: [], rates: [], changes: 0, closed: 0, loudest: 0 };
globalThis.AudioContext = class {
  constructor({ sampleRate }) { log.rates.push(sampleRate); this.currentTime = 0; }
  createBuffer(channels, length, rate) {
    const samples = new Float32Array(length);
    return { duration: length / rate, length, getChannelData: () => samples };
  }
  createBufferSource() {
    const source = { connect() {}, start(at) {
      log.starts.push([at, source.buffer.duration]);
      for (const each of source.buffer.getChannelData(0)) log.loudest = Math.max(log.loudest, Math.abs(each));
      if (log.starts.length == stopAfter) speaker.stop();
    } };
    return source;
  }
  close() { log.closed++; }
};
const { Speaker, spokenWords } = await import(`${files}/speaker.js`);
const node = { content: text };
const speaker = new Speaker(() => log.changes++);
try {
  await speaker.read(node, model);
} catch (fault) {
  log.fault = fault.message;
}
log.reading = speaker.isReading(node);
log.words = spokenWords(text);
console.log(JSON.stringify(log));
"""


def run(server: RunningServer, tmp_path: Path, text: str, model: str = VOICE_MODEL, stop_after: int = 0) -> Any:
    """Have the module read a text, and return what the browser was told."""
    program = tmp_path / "browser.mjs"
    program.write_text(BROWSER)
    arguments = [str(FILES), server.url, model, text, str(stop_after)]
    # The modules are served as such; node takes files of this ending for another kind without being told.
    command = ["node", "--experimental-default-type=module", str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@pytest.fixture
def parts() -> Parts:
    return Parts(models={VOICE_MODEL: VOICE})


def test_an_answer_is_played_without_gaps_and_ends_by_itself(parts: Parts, tmp_path: Path) -> None:
    with RunningServer(parts) as server:
        log = run(server, tmp_path, TEXT)
    seconds = sum(duration for _, duration in log["starts"])
    assert seconds == pytest.approx(sum(len(each) for each in pieces_of(TEXT)) * 0.01, abs=0.001)
    for (at, duration), (following, _) in zip(log["starts"], log["starts"][1:], strict=False):
        assert following == pytest.approx(at + duration)
    assert 0.2 < log["loudest"] < 0.3
    assert (log["rates"], log["closed"], log["changes"], log["reading"]) == ([24_000], 1, 2, False)
    assert "fault" not in log


def test_stopping_ends_the_sound_and_the_request(parts: Parts, tmp_path: Path) -> None:
    with RunningServer(parts) as server:
        log = run(server, tmp_path, f"{TEXT} " * 60, stop_after=1)
        assert eventually(lambda: parts.synthesizer.abandoned == 1)
    assert (log["closed"], log["changes"], log["reading"]) == (1, 2, False)
    assert "fault" not in log


def test_what_the_server_refuses_is_said(parts: Parts, tmp_path: Path) -> None:
    with RunningServer(parts) as server:
        log = run(server, tmp_path, TEXT, model="org/chat-model")
    assert "does not speak" in log["fault"]
    assert (log["closed"], log["reading"]) == (1, False)


@pytest.mark.parametrize(
    ("markdown", "words"),
    [
        ("# Title\n\nHello **bold** and `code`.", "Title\nHello bold and code."),
        ("Before\n\n```python\nprint(1)\n```\n\nafter", "Before\nafter"),
        ("Before\n\n~~~\nopen", "Before"),
        ("- one\n* two\n3. three", "one\ntwo\nthree"),
        ("a [link](http://a.example/b) and https://a.example here", "a link and here"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a b\n1 2"),
        ("> a quote", "a quote"),
    ],
)
def test_markdown_is_not_read(markdown: str, words: str, parts: Parts, tmp_path: Path) -> None:
    with RunningServer(parts) as server:
        log = run(server, tmp_path, markdown, stop_after=1)
    assert log["words"] == words
    assert parts.synthesizer.requests[0].text == words
