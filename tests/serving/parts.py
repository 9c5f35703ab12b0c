"""The server's application on in-memory adapters: three models that run, one that does not, and scripted answers."""

import json
import struct

from mlxk.adapters.in_memory.backend_registry import InMemoryBackendRegistry
from mlxk.adapters.in_memory.built_in_models import InMemoryBuiltInModels
from mlxk.adapters.in_memory.event_log import InMemoryEventLog
from mlxk.adapters.in_memory.memory_probe import InMemoryMemoryProbe
from mlxk.adapters.in_memory.model_cache import CachedModel, InMemoryModelCache
from mlxk.adapters.in_memory.model_files import InMemoryModelFiles
from mlxk.adapters.in_memory.text_generator import InMemoryTextGenerator
from mlxk.adapters.in_memory.workspace_store import InMemoryWorkspaceStore
from mlxk.adapters.system.clock import SystemClock
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.list_models import ListModels
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.application.use_cases.serve_text import ServeText
from mlxk.domain.capabilities import Backend
from mlxk.domain.memory import MemoryReading
from mlxk.entrypoints.http.app import Application, Ports
from mlxk.entrypoints.server_settings import ServerSettings

COMMIT = "a" * 40
HEADER = json.dumps({"weight": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
CHAT = {
    "config.json": json.dumps(
        {"model_type": "llama", "max_position_embeddings": 2048, "quantization": {"bits": 4, "group_size": 32}}
    ).encode(),
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
}
BASE = {name: data for name, data in CHAT.items() if name != "chat_template.jinja"}
BROKEN = {name: data for name, data in CHAT.items() if name != "model.safetensors"}

CHAT_MODEL = "org/chat-model"
OTHER_MODEL = "org/other-chat"
BASE_MODEL = "org/base-model"
BROKEN_MODEL = "org/broken-model"


class Parts:
    """An application and everything it stands on.

    Args:
        generator: Answers; echoes the prompt when not given.
        settings: The operator's.
        budget: Memory of the machine, bytes.
        ping_seconds: Silence after which a stream gets a sign of life.
    """

    def __init__(
        self,
        generator: InMemoryTextGenerator | None = None,
        settings: ServerSettings | None = None,
        budget: int = 2**40,
        ping_seconds: float = 10.0,
    ) -> None:
        self.generator = generator or InMemoryTextGenerator()
        self.settings = settings or ServerSettings()
        self.log = InMemoryEventLog()
        directories = {CHAT_MODEL: CHAT, OTHER_MODEL: CHAT, BASE_MODEL: BASE, BROKEN_MODEL: BROKEN}
        self.cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in directories})
        files = InMemoryModelFiles({f"/cache/{name}/{COMMIT}": each for name, each in directories.items()})
        workspaces = InMemoryWorkspaceStore()
        built_in = InMemoryBuiltInModels()
        describe = DescribeModel(files, workspaces, InMemoryBackendRegistry({Backend.MLX_LM: {"llama"}}), self.cache)
        clock = SystemClock()
        self.catalogue = ServeCatalogue(
            ResolveModel(self.cache, workspaces, built_in),
            ListModels(self.cache, workspaces, built_in, describe),
            describe,
            self.generator,
            clock,
            self.settings.allow_paths,
        )
        serve_text = ServeText(
            self.catalogue,
            self.generator,
            InMemoryMemoryProbe(MemoryReading(budget, budget)),
            self.log,
            self.settings.strict_memory,
        )
        ports = Ports(self.catalogue, serve_text, self.generator, clock, self.log)
        self.application = Application(ports, self.settings, ping_seconds)
        self.application.life.preloaded = True

    def close(self) -> None:
        """End everything."""
        self.application.close()
        self.generator.close()
