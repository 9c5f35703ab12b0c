"""The chat page's modules that attach files, run by node against a server, with a browser's readers in place."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator
from models.clips import greys, written
from models.pictures import as_png, noise
from serving.parts import EYE, VISION, Parts
from serving.running import RunningServer

from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")

PAGE = Path(__file__).parents[2] / "entrypoints" / "http" / "page_files"
BROWSER = """
import { readFileSync } from "node:fs";
const [files, server, model, widths, ...named] = process.argv.slice(2);
const page = fetch;
globalThis.fetch = (path, options) => page(new URL(path, server), options);
globalThis.sessionStorage = { getItem: () => null };
globalThis.requestAnimationFrame = (then) => setTimeout(then);
globalThis.URL.createObjectURL = () => "blob:it";
globalThis.URL.revokeObjectURL = () => {};
globalThis.document = { createElement: () => {
  const video = { videoWidth: Number(widths) };
  setTimeout(() => (Number(widths) < 0 ? video.onerror() : video.onloadedmetadata()));
  return video;
} };
globalThis.FileReader = class {
  async readAsDataURL(blob) {
    this.result = `data:${blob.type};base64,${Buffer.from(await blob.arrayBuffer()).toString("base64")}`;
    this.onload();
  }
};
globalThis.OfflineAudioContext = class {
  async decodeAudioData() { return { duration: 0.5 }; }
  createBufferSource() { return { connect() {}, start() {} }; }
  async startRendering() { return { getChannelData: () => new Float32Array(8000) }; }
};
const { attachmentOf, blobOf, soundOf } = await import(`${files}/media.js`);
const chats = await import(`${files}/chat.js`);
const { chat: ask } = await import(`${files}/api.js`);
const log = { kinds: [] };
try {
  const attachments = [];
  for (const each of named) {
    const [path, type] = each.split("|");
    const file = new File([readFileSync(path)], path.split("/").at(-1), { type: type ?? "" });
    attachments.push(await attachmentOf(file));
  }
  log.kinds = attachments.map(({ kind, format }) => [kind, format]);
  log.sizes = attachments.map(({ url }) => blobOf(url).size);
  log.sounds = [];
  for (const each of attachments.filter(({ kind }) => kind === "video")) {
    log.sounds.push((await soundOf(blobOf(each.url), each.name)).format);
  }
  const begun = chats.newChat({});
  chats.add(begun, null, { role: "user", content: "What happens?", attachments });
  const kept = chats.readChat(JSON.parse(JSON.stringify(begun)));
  const messages = chats.messagesUpTo(kept, chats.last(kept).id, "");
  log.parts = messages[0].content.map((part) => part.type);
  if (model) await ask({ model, messages, stream: true }, undefined, { delta() {}, finish() {}, usage() {} });
} catch (fault) {
  log.fault = fault.message;
}
console.log(JSON.stringify(log));
"""


def attached(folder: Path, *files: str, server: str = "", model: str = "", width: int = 32) -> Any:
    """Attach files to a message, as ``PATH|TYPE``; with a server send it; return what became of them."""
    program = folder / "browser.mjs"
    program.write_text(BROWSER)
    # The modules are served as such; node takes files of this ending for another kind without being told.
    command = ["node", "--experimental-default-type=module", str(program), str(PAGE), server, model, str(width)]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=True, timeout=60, cwd=folder)
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "walk.mp4").write_bytes(written(greys(30)))
    (tmp_path / "walk.mkv").write_bytes(b"clip")
    (tmp_path / "a.png").write_bytes(as_png(noise(1)))
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


def test_a_clip_is_attached_kept_and_shown_to_the_model_beside_an_image(folder: Path) -> None:
    asked: list[GenerationRequest] = []
    answers = InMemoryTextGenerator(lambda request: (asked.append(request), ("Well.",))[1])
    with RunningServer(Parts(answers, models={EYE: VISION})) as server:
        log = attached(folder, "walk.mp4|video/mp4", "a.png|image/png", server=server.url, model=EYE)
    assert log.get("fault") is None
    assert log["kinds"] == [["video", ""], ["image", ""]]
    assert log["sizes"] == [(folder / "walk.mp4").stat().st_size, (folder / "a.png").stat().st_size]
    assert log["sounds"] == ["wav"]
    assert log["parts"] == ["video_url", "image_url", "text"]
    (request,) = asked
    assert isinstance(request.prompt, Conversation)
    message = request.prompt.messages[-1]
    assert [len(clip.frames) for clip in message.videos] == [4]
    assert len(message.images) == 1


@pytest.mark.parametrize(
    ("file", "width", "kind"),
    [
        ("walk.mp4|video/mp4", 32, ["video", ""]),
        ("walk.mkv", 32, ["video", ""]),
        ("walk.mkv", -1, ["video", ""]),
        ("walk.mp4|video/webm", 0, ["audio", "wav"]),
        ("walk.mp4|audio/mp4", 32, ["audio", "wav"]),
        ("walk.mp4|audio/mpeg", 32, ["audio", "mp3"]),
    ],
)
def test_what_a_file_is_attached_as(file: str, width: int, kind: list[str], folder: Path) -> None:
    log = attached(folder, file, width=width)
    assert (log["kinds"], log.get("fault")) == ([kind], None)


def test_another_file_is_refused_by_its_name(folder: Path) -> None:
    assert attached(folder, "notes.txt|text/plain")["fault"] == "notes.txt is no image, clip or sound (text/plain)."
