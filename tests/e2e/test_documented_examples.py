"""Every example of the documents: run here as it is written, or in a table with the reason why not.

A page's commands are typed one after the other, by a reader with a home, a hub on this machine, and the files that the
page names. Built-in models stand for real ones, under their names. What a page shows is compared with what is printed.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import attrs
import chatting
import pytest
from hub.server import LoopbackHub
from models import clips
from models.cached_models import put
from models.tiny_embedding import build_qwen3
from models.tiny_rerankers import build_cross_encoder
from models.tiny_voices import build_qwen3_tts
from typed_commands import BUILT_IN, StartedServer, Typed, built_in_files, reader_environment, typed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.mlx,
    pytest.mark.skipif(not all(map(shutil.which, ("bash", "jq", "curl", "git"))), reason="the examples need them"),
]

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "contracts" / "README.md"])

READERS = {
    "warm": ("chat", "prompts", "speech", "vision", "json-api", "embeddings", "reranking", "speech-out"),
    "run": ("run", "monitor"),
    "warm-model": ("warm-model",),
    "operations": ("operations",),
    "publisher": ("quantize-and-publish",),
    "tuning": ("tuning",),
    "cluster": ("cluster",),
    "server": ("server", "settings", "clients/agents"),
}
"""Pages of ``docs`` by who reads them; the first reader has a server in the background, for a model in memory."""

CLIENTS = "make clients runs the program"
OTHERS = "make clients-all runs the program"
ELSEWHERE = (
    ("README.md", "", "tests/e2e/test_readme.py"),
    ("docs/server.md", "curl ", "tests/e2e/test_server_demo.py"),
    ("docs/apis/ollama.md", "curl ", "tests/e2e/test_ollama_page.py"),
    ("docs/apis/responses.md", "curl ", "tests/integration/test_responses_page.py"),
    ("docs/apis/anthropic.md", "curl ", "tests/integration/test_http_messages_page.py"),
    ("docs/command-line.md", "", "tests/architecture/test_documents.py"),
    (
        "docs/embeddings.md",
        "export MLXK2_ENABLE_ALPHA_FEATURES=1\nmlxk embed-serve",
        "two servers; test_embed_serve.py starts them",
    ),
    (
        "docs/embeddings.md",
        "export MLXK2_ENABLE_ALPHA_FEATURES=1\nmlxk embed EMBEDDER --image",
        "test_embeddings_program.py runs tiny models of that kind",
    ),
    ("docs/reranking.md", "mlxk rerank VISION-RERANKER", "test_vision_rerank.py runs a tiny model of that kind"),
    *(
        ("docs/speech-out.md", begins, "test_voice_cloning.py runs tiny models of that kind")
        for begins in (
            "mlxk say CLONER",
            "mlxk serve --allow-voice-cloning",
            "curl http://127.0.0.1:8000/v1/audio/speech -F",
        )
    ),
    ("docs/bench.md", "", "they take minutes; tests/integration/test_bench.py measures little"),
    ("docs/cluster.md", "$ python docs/examples/scheduler.py", "tests/e2e/test_scheduler_example.py"),
    ("docs/cluster.md", "$ mlxk serve --model Qwen3-4B-4bit --local-ranks", "tests/e2e/test_ranks.py"),
    ("docs/cluster.md", "mlxk serve --model Qwen3-4B-4bit --hostfile", "tests/e2e/test_ranks.py"),
    ("docs/cluster.md", "$ mlxk show Qwen3-4B-4bit --hosts", "tests/e2e/test_ranks.py"),
    ("docs/cluster.md", "$ mlxk doctor --hosts", "tests/e2e/test_doctor_hosts.py"),
    ("docs/run.md", "sudo apt install", "it installs packages of the system"),
    ("docs/speech.md", "mlxk run mlx-community/gemma-3n", "test_sound_program.py runs a tiny model of that kind"),
    ("docs/clients/shell.md", "", "tests/e2e/test_client_pages.py"),
    ("docs/clients/chat-uis.md", "docker run", "it needs Docker"),
    ("docs/clients/chat-uis.md", "uv tool install --python 3.11 open-webui", OTHERS),
    ("docs/clients/chat-uis.md", "mlxk serve --cors-origin", "tests/unit/entrypoints/test_serve_command.py"),
    ("docs/clients/chat-uis.md", "MLXK2_API_KEY=choose-one mlxk serve", "the flags are those of docs/cluster.md"),
    ("docs/chat-page.md", "$ mlxk serve --model demo", "the lines are those of docs/server.md"),
    ("docs/apis/ollama.md", "$ mlxk serve --port 11434", "the lines are those of docs/server.md"),
    ("docs/apis/anthropic.md", "export ANTHROPIC_BASE_URL", CLIENTS),
    ("docs/clients/agents.md", "$ mlxk launch claude", CLIENTS),
    ("docs/clients/agents.md", "cd my-project", CLIENTS),
    ("docs/clients/agents.md", "export ANTHROPIC_BASE_URL", CLIENTS),
    ("docs/clients/agents.md", "export MLXK_API_KEY=local\ncodex", CLIENTS),
    ("docs/clients/agents.md", "CODEX_OSS_BASE_URL", OTHERS),
    ("docs/clients/agents.md", "opencode run", OTHERS),
    ("docs/clients/agents.md", "export MLXK_API_KEY=local\nexport OPENCODE", OTHERS),
    ("docs/clients/agents.md", "export OPENAI_BASE_URL", OTHERS),
    ("docs/clients/agents.md", "cn ", OTHERS),
    ("docs/clients/agents.md", "cline ", OTHERS),
    ("docs/clients/agents.md", "pi ", OTHERS),
    ("docs/clients/agents.md", "export OPENAI_API_BASE", OTHERS),
    ("docs/clients/agents.md", "export GOOSE_PROVIDER", "the page says that it was not run"),
)
"""Blocks that are not run here, by the page and how they begin: the test that runs them, or the reason."""

FAILING = {
    "mlxk rm model": "a part of a name wants a confirmation, and there is no terminal",
    'mlxk rm "test-*"': "a pattern wants a confirmation, and there is no terminal",
    "mlxk prune": "it wants a confirmation, and there is no terminal",
    "mlxk clone org/model@v1.0": "MLXK_WORKSPACE_HOME is not set, as the comment says that it has to be",
}
SKIPPED = {
    'uv tool install ".[mcp]"': "it installs packages; the README's commands do as well",
    "mlxk run MODEL --mcp servers.json": "the next line has a question for the same tools",
}
"""Commands that are not run, with the reason."""

CHAT = "mlxk run demo --keep"
"""A chat that the page starts, without showing a turn of it."""
A_TURN = ">>> My name is Olga.\nOlga\n"

PLACEHOLDERS = (
    (r"process \d+|\(\d+\)$", "process N"),
    (r'"pid": \d+', '"pid": N'),
    (r'"other_urls": \[.*?\]', '"other_urls": []'),
    (r"[\d.]+ tokens/s", "N tokens/s"),
    (r"\| [\d.]+ +(?=\| http)", "| N "),
    (r"image_[0-9a-f]{8}", "image_N"),
    (r"-{3,}", "---"),
    (r" {2,}", " "),
    (r"\n(?: \|)+ process N", " process N"),
)
"""What differs from run to run, and what stands for it."""


@attrs.frozen
class Block:
    """A block of commands."""

    page: str
    """Its path from the root."""
    session: bool
    """Whether it shows what is printed, behind commands that ``$`` marks."""
    text: str

    @property
    def runs_elsewhere(self) -> str:
        """Why it is not run here, or which test runs it; empty where it is run here."""
        found = (why for page, begin, why in ELSEWHERE if self.page == page and self.text.startswith(begin))
        return next(found, "")

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command without its comment, and what is shown below it."""
        if self.session:
            for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                yield command, shown
        elif "'{\n" in self.text:
            yield self.text, ""
        else:
            exports: list[str] = []
            for line in re.sub(r" \\\n\s*", " ", self.text).splitlines():
                command = re.split(r"\s+# ", line)[0].strip()
                if command.startswith("export "):
                    exports.append(command)
                elif command:
                    yield "\n".join([*exports, command]), ""


def blocks() -> list[Block]:
    """Return the blocks of all documents."""
    found = []
    for path in DOCUMENTS:
        for language, text in re.findall(r"^```(sh|console)\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M):
            found.append(Block(path.relative_to(ROOT).as_posix(), language == "console", text))
    return found


class Reader:
    """Who types the commands of a page: a home, which is the working directory as well, and a port of its own."""

    def __init__(self, home: Path, hub: LoopbackHub) -> None:
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        # What pages say of memory is without a library for matrices, which a machine may have or not.
        own = {"MLXK2_PORT": self.port, "MLXK2_BLAS": "off"}
        self.variables = {**reader_environment(home, hub.url), **own}
        self._server: StartedServer | None = None

    def follow(self, block: Block) -> None:
        """Type the commands of a block, and compare what is printed with what it shows."""
        for written, shown in block.commands():
            if written in SKIPPED:
                continue
            command = self.here(written, self.names())
            done = self.type(command, self.here(shown))
            expected = written in FAILING
            if (done.status != 0) != expected:
                pytest.fail(f"{command}\nexit status {done.status}\n{done.text}", pytrace=False)
            printed = done.text.replace(str(self.home), "/home/ada")
            if block.session and not re.fullmatch(pattern(self.here(shown)), alike(printed)):
                pytest.fail(f"{command}\nprints\n{alike(printed)}\nand not\n{alike(shown)}", pytrace=False)

    def here(self, text: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
        """Return a text with this reader's port, and with what placeholders stand for."""
        for name, own in {"8000": self.port, **names}.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w=])", own, text)
        return text

    def names(self) -> dict[str, str]:
        """Return what stands for the placeholders in commands: models, a tool, a revision, the last chat kept."""
        chats = sorted((self.home / ".local" / "state" / "mlxk" / "chats").glob("*"))
        models = {
            "embed MODEL": "embed org/Qwen3-Embedding",
            '"MODEL"': '"org/Qwen3-Embedding"',
        }
        return models | {
            "MODEL": "demo",
            "RERANKER": "org/reranker",
            "VOICE": "org/voice",
            "NAME": chats[-1].stem if chats else "",
            "read_file": "echo",
            "org/model@abc1234": "org/old@0123456",
        }

    def type(self, command: str, shown: str) -> Typed:
        """Type one command: of a chat on a terminal, of a server until it is ready, of others to their end."""
        if ">>> " in shown or command == CHAT:
            return self.chat(command, shown or A_TURN)
        if not re.search(r"mlxk serve\b(?!.*--background)", command):
            return typed(command, self.variables, self.home)
        self.stop()
        self._server = StartedServer.start(command, self.variables, self.home, len(shown.splitlines()))
        return Typed(0, self._server.said)

    def chat(self, command: str, shown: str) -> Typed:
        """Type the messages of a chat, and return the conversation."""
        opening, *turns = shown.split(">>> ")
        terminal = chatting.start(self.variables, self.home, *command.split()[1:], MLXK2_USE_SERVER="1")
        assert opening.strip() in str(terminal.before)
        for message, _, answer in (turn.partition("\n") for turn in turns):
            chatting.say(terminal, message, answer.strip())
        chatting.leave(terminal)
        return Typed(0, shown)

    def stop(self) -> None:
        """End every server."""
        if self._server is not None:
            self._server.stop()
        self._server = None
        typed("mlxk stop --all", self.variables, self.home)


def alike(text: str) -> str:
    """Return a text in which what differs from run to run is the same."""
    for differs, stands in PLACEHOLDERS:
        text = re.sub(differs, stands, text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def pattern(shown: str) -> str:
    """Return the pattern of what is shown, in which a line of three dots stands for any lines."""
    lines = ["(?:.|\\n)*" if line.strip() == "..." else re.escape(line) for line in alike(shown).splitlines()]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Serve the models that the pages name, each with the files of a built-in one."""
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as served:
        for name in ("Llama-3.2-1B-Instruct-4bit", "Qwen3-4B-4bit", "Qwen3-Coder-30B-A3B-Instruct-4bit"):
            served.add(f"mlx-community/{name}", built_in_files("demo"), tags=("mlx",))
        model = served.add("org/model", built_in_files("demo"), tags=("mlx",))
        model.branches |= {"v1.0": model.head(), "dev": model.head()}
        yield served


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory, hub: LoopbackHub) -> Iterator[dict[str, Reader]]:
    """Hold the readers that there are, and end their servers."""
    found: dict[str, Reader] = {}
    yield found
    for reader in found.values():
        reader.stop()


def reader_of(name: str, readers: dict[str, Reader], home: Path, hub: LoopbackHub) -> Reader:
    """Return a reader, with what their pages take for granted when it is a new one."""
    if name not in readers:
        readers[name] = reader = Reader(home, hub)
        write_files(home)
        cached = {"operations": ("org/model", "org/my-model", "org/test-1", "org/old", "org/phi")}
        cached["cluster"] = ("mlx-community/Qwen3-4B-4bit",)
        for model in cached.get(name, ()):
            put(home, model, built_in_files("demo"))
        if name == "operations":
            partial = home / "hf" / "hub" / "models--org--phi" / "blobs" / ("0" * 64 + ".mlxk.incomplete")
            partial.parent.mkdir(exist_ok=True)
            partial.write_bytes(b"0" * 5000)
        if name == "warm":
            build_qwen3(put(home, "org/Qwen3-Embedding", {}))
            build_cross_encoder(put(home, "org/reranker", {}), "bert")
            build_qwen3_tts(put(home, "org/voice", {}))
            assert typed("mlxk serve --background", reader.variables, home).status == 0
    return readers[name]


def write_files(home: Path) -> None:
    """Write the files that the pages name."""
    for name, lines in {"note.txt": 12, "notes.md": 2, "questions.txt": 1, "CONTRIBUTING.md": 3}.items():
        (home / name).write_text("What is mlxk?\n" * lines)
    (home / "texts.jsonl").write_text('{"text": "a man is eating food"}\n{"text": "hello world", "id": 7}\n')
    facts = re.findall(r'^\{"prompt".*\}\n', (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8"), re.MULTILINE)
    (home / "facts.jsonl").write_text("".join(facts))
    passages = ("Cars need fuel.", "Plants make sugar from light, by photosynthesis.")
    (home / "passages.txt").write_text("".join(f"{each}\n" for each in passages))
    (home / "passages.jsonl").write_text("".join(f"{json.dumps({'text': each})}\n" for each in passages))
    (home / "notes").mkdir()
    (home / "notes" / "plants.txt").write_text("\n".join(passages))
    shutil.copy(BUILT_IN / "demo-vision" / "blue-square.jpg", home)
    (home / "clip.mp4").write_bytes(clips.written(clips.greys(8)))
    shutil.copy(BUILT_IN / "demo-speech" / "hello.wav", home / "clip.wav")
    server = {"command": sys.executable, "args": [str(ROOT / "tests" / "tool_server.py"), "files"]}
    (home / "servers.json").write_text(json.dumps({"mcpServers": {"files": server}}))
    shutil.copytree(BUILT_IN / "demo", home / "broken")
    subprocess.run(["git", "init", "-q"], cwd=home, check=True)
    subprocess.run(["git", "add", "note.txt"], cwd=home, check=True)
    (home / "note.txt").write_text("What is mlxk?\n" * 11 + "Hello!\n")


@pytest.mark.parametrize(("reader", "page"), [(name, page) for name, pages in READERS.items() for page in pages])
def test_the_examples_of_a_page_run_as_they_are_written(
    reader: str, page: str, readers: dict[str, Reader], hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    who = reader_of(reader, readers, tmp_path_factory.mktemp("home"), hub)
    here = [block for block in blocks() if block.page == f"docs/{page}.md" and not block.runs_elsewhere]
    assert here
    for block in here:
        who.follow(block)


def test_every_example_is_run_or_it_is_said_why_not() -> None:
    pages = {f"docs/{page}.md" for pages in READERS.values() for page in pages}
    neither = [block for block in blocks() if block.page not in pages and not block.runs_elsewhere]
    assert neither == []
    needless = [
        (page, begin)
        for page, begin, _ in ELSEWHERE
        if not any(b.page == page and b.text.startswith(begin) for b in blocks())
    ]
    assert needless == []


def test_a_test_that_is_said_to_run_a_page_reads_it() -> None:
    for page, _, why in ELSEWHERE:
        if why.endswith(".py") and not why.startswith("make"):
            assert Path(page).name in (ROOT / why).read_text(encoding="utf-8"), (page, why)
