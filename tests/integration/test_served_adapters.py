"""Adapters that a server has under names of their own: on the weights of their model, beside it and each other."""

import base64
import io
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from models import tiny_vision
from models.tiny_models import build, write_adapter
from PIL import Image
from serving.running import RunningServer
from serving.settings_home import Machine

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import EngineOptions
from mlxk.domain.models.model import ModelHandle
from mlxk.entrypoints.container import build as build_container
from mlxk.entrypoints.settings import read_settings

pytestmark = pytest.mark.mlx
PROMPT = "The quick brown fox"


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama", head_dim=32, hidden_size=128, intermediate_size=512)


def oracle(handle: ModelHandle, adapter: Path | None, prompt: str) -> str:
    """Return mlx-lm's own greedy text with an adapter."""
    import mlx_lm

    loaded = mlx_lm.load(handle.directory, adapter_path=None if adapter is None else str(adapter))
    text: str = mlx_lm.generate(loaded[0], loaded[1], prompt, max_tokens=20)
    return text


def complete(server: RunningServer, model: str, prompt: str) -> str:
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 20}
    status, _, answer = server.post("/v1/completions", body)
    assert status == 200, answer
    return str(answer["choices"][0]["text"])


def test_adapters_answer_by_name_alone_and_at_the_same_time_as_the_library_does(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path
) -> None:
    adapters = {kind: write_adapter(tmp_path / kind, handle, kind) for kind in ("lora", "dora", "full")}
    wanted = {"llama": oracle(handle, None, PROMPT)}
    wanted |= {f"my-{kind}": oracle(handle, adapter, PROMPT) for kind, adapter in adapters.items()}
    assert len(set(wanted.values())) == 4
    flags = [word for kind, adapter in adapters.items() for word in ("--adapter", f"my-{kind}={adapter}")]
    with mlxk.serve("--model", handle.directory, *flags) as server:
        assert {name: complete(server, name, PROMPT) for name in wanted} == wanted
        names = list(wanted) * 3
        with ThreadPoolExecutor(len(names)) as pool:
            assert list(pool.map(lambda name: complete(server, name, PROMPT), names)) == [wanted[x] for x in names]
        listed = {each["id"]: each for each in server.get("/v1/models")[2]["data"]}
        assert {listed[name].get("parent") for name in wanted if name != "llama"} == {"llama"}
        assert "parent" not in listed["llama"]
        assert len({listed[name]["system_fingerprint"] for name in wanted}) == 4
        assert server.get("/v1/models/my-dora")[2]["parent"] == "llama"
        tags = {each["name"] for each in server.get("/api/tags")[2]["models"]}
        assert {"my-lora:latest", "my-dora:latest"} <= tags
        asked = {"model": "my-lora", "prompt": PROMPT, "raw": True, "stream": False}
        status, _, answer = server.post("/api/generate", {**asked, "options": {"temperature": 0, "num_predict": 20}})
        assert (status, answer["response"]) == (200, wanted["my-lora"])


def test_an_adapter_alone_is_served_by_its_name_with_the_model_that_it_names(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "poet", handle)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "model": handle.directory}))
    with mlxk.serve("--model", str(adapter)) as server:
        assert complete(server, "poet", PROMPT) == oracle(handle, adapter, PROMPT)
        assert complete(server, "llama", PROMPT) == oracle(handle, None, PROMPT)
        assert server.get("/v1/models/poet")[2]["parent"] == "llama"


def test_an_alias_of_an_adapter_is_the_adapter_and_the_adapter_may_be_the_model_in_memory(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "poet", handle)
    wanted = oracle(handle, adapter, PROMPT)
    mlxk.write(f'[models.bard]\nmodel = "{handle.directory}"\nadapter = "{adapter}"\nmax_tokens = 3\n')
    aliases = ("--alias", "gpt=poet", "--alias", "claude=bard")
    for model in (handle.directory, "poet", "gpt"):
        with mlxk.serve("--model", model, "--adapter", f"poet={adapter}", *aliases) as server:
            assert {name: complete(server, name, PROMPT) for name in ("poet", "gpt", "claude")} == dict.fromkeys(
                ("poet", "gpt", "claude"), wanted
            )
            listed = {each["id"]: each.get("parent") for each in server.get("/v1/models")[2]["data"]}
            assert {listed[name] for name in ("poet", "gpt", "bard", "claude")} == {"llama"}
            assert (complete(server, "", PROMPT) == wanted) is (model != handle.directory)


@pytest.mark.parametrize("flags", [("--adapter", "llama=ADAPTER"), ("--alias", "llama=demo")])
def test_a_name_that_the_model_itself_would_hide_stops_the_start(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path, flags: tuple[str, str]
) -> None:
    adapter = write_adapter(tmp_path / "poet", handle)
    assert mlxk("serve", "--model", handle.directory, flags[0], flags[1].replace("ADAPTER", str(adapter))).status == 0
    started, container = mlxk.served[-1], build_container(read_settings({"HOME": str(mlxk.home)}), mlxk.served[-1])
    with pytest.raises(ValidationError, match="'llama' is the name of a model of this server already"):
        container.use_cases.serve_catalogue().offer_all(started.model, started.aliases, None, started.ready)


def test_adapters_of_models_that_read_images_answer_with_images_and_without(mlxk: Machine, tmp_path: Path) -> None:
    handle = tiny_vision.build(tmp_path / "sees", "qwen3_vl")
    adapter = write_adapter(tmp_path / "poet", handle)
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    asked = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT}]

    def looks(model: str) -> str:
        messages = [{"role": "user", "content": asked}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12}
        status, _, answer = server.post("/v1/chat/completions", body)
        assert status == 200, answer
        return str(answer["choices"][0]["message"]["content"])

    with mlxk.serve("--model", handle.directory, "--adapter", f"poet={adapter}") as server:
        plain, adapted = looks("sees"), looks("poet")
        assert plain != adapted
        assert (looks("poet"), looks("sees")) == (adapted, plain)
        assert complete(server, "sees", PROMPT) == oracle(handle, None, PROMPT)
        assert complete(server, "poet", PROMPT) == oracle(handle, adapter, PROMPT)


def test_adapters_cost_their_own_bytes_and_go_before_their_model(handle: ModelHandle, tmp_path: Path) -> None:
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    adapters = [str(write_adapter(tmp_path / f"{seed}", handle, seed=seed)) for seed in (1, 2)]

    def load(adapter: str | None) -> tuple[int, int]:
        """Load, and return what all arrays and all weights take then."""
        engine.load(GenerationRequest(handle, "", engine_options=EngineOptions(adapter=adapter)))
        state = engine.state(5)
        assert [each.name for each in state.models] == [handle.name]
        return state.active_bytes, state.residents[0].weight_bytes

    measured = [load(each) for each in (None, *adapters)]
    own = sum(array.nbytes for array in mx.load(f"{adapters[0]}/adapters.safetensors").values())  # type: ignore[union-attr]
    assert [after[1] - before[1] for before, after in itertools.pairwise(measured)] == [own, own]
    assert measured[2][0] - measured[0][0] < 3 * own < measured[0][1] / 2
    assert engine.unload(handle) == (handle,)
    state = engine.state(5)
    assert (state.models, measured[2][0] - state.active_bytes > measured[0][1]) == ((), True)
    # An adapter brings its model with it.
    assert load(adapters[0])[1] == measured[1][1]
    engine.close()


def truncated(directory: Path) -> None:
    path = directory / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def configured(**changes: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def pickled(directory: Path) -> None:
    (directory / "adapters.safetensors").rename(directory / "adapter_model.bin")


def of_peft(directory: Path) -> None:
    (directory / "adapters.safetensors").rename(directory / "adapter_model.safetensors")


def of_an_old_release(directory: Path) -> None:
    (directory / "adapters.safetensors").rename(directory / "adapters.npz")


PARAMETERS = {"rank": 4, "scale": 6.0, "dropout": 0.0}


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda directory: (directory / "adapter_config.json").unlink(), "(no adapter_config.json)"),
        (lambda directory: (directory / "adapter_config.json").write_text("[]"), "is not a JSON object"),
        (configured(fine_tune_type="ia3"), "fine_tune_type that is not one of lora, dora, full"),
        (configured(num_layers="all"), "needs num_layers"),
        (configured(lora_parameters={**PARAMETERS, "rank": 0}), "needs lora_parameters.rank"),
        (configured(lora_parameters={"rank": 4, "dropout": 0.0}), "needs lora_parameters.scale"),
        (configured(lora_parameters=[4]), "needs lora_parameters, an object"),
        (configured(lora_parameters={**PARAMETERS, "dropout": 1}), "needs lora_parameters.dropout, a number from 0"),
        (configured(lora_parameters={**PARAMETERS, "keys": "q_proj"}), "has lora_parameters.keys that are not a list"),
        (configured(peft_type="LORA"), "is of PEFT"),
        (of_an_old_release, "Its format is that of an old release of mlx-lm."),
        (of_peft, "has a peft_type that is not LORA"),
        (pickled, "adapter_model.bin is a pickle"),
        (truncated, "adapters.safetensors of 'a' is damaged: truncated"),
    ],
)
def test_an_adapter_that_cannot_be_used_stops_the_start_with_its_file_and_field(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path, damage: Callable[[Path], None], fault: str
) -> None:
    adapter = write_adapter(tmp_path / "a", handle)
    assert mlxk("serve", "--adapter", f"poet={adapter}").status == 0
    assert dict(mlxk.served[-1].entries)["poet"]["model"] == handle.directory
    damage(adapter)
    refused = mlxk("serve", "--adapter", f"poet={adapter}")
    assert (refused.status, fault in refused.err) == (1, True), refused.err
    mlxk.write(f'[models.poet]\nmodel = "{handle.directory}"\nadapter = "{adapter}"\n')
    with mlxk.serve() as server:
        assert "poet" not in {each["id"] for each in server.get("/v1/models")[2]["data"]}
        status, _, answer = server.post("/v1/completions", {"model": "poet", "prompt": PROMPT})
        assert (status, "'a'" in str(answer), str(tmp_path) in str(answer)) == (400, True, False)


def test_an_adapter_that_names_no_model_needs_one_from_the_command_line(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a", handle)
    configured(model=None)(adapter)
    refused = mlxk("serve", "--adapter", f"poet={adapter}")
    assert refused.err.splitlines() == [
        "serve: Error: --adapter: 'poet' does not say which model it was trained on",
        "Name the model: mlxk serve --model MODEL --adapter NAME=PATH",
    ]
    assert mlxk("serve", "--model", handle.directory, "--adapter", f"poet={adapter}").status == 0
    assert dict(mlxk.served[-1].entries)["poet"]["model"] == handle.directory


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--adapter", "poet"], "--adapter: 'poet' is not NAME=PATH"),
        (["--adapter", "demo=PATH"], "--adapter: 'demo' cannot be a name: it is a built-in model"),
        (["--adapter", "a/b=PATH"], "reads as the full name"),
        (["--adapter", "a=PATH", "--adapter", "a=PATH"], "'a' stands for two models"),
        (["--alias", "a=demo", "--adapter", "a=PATH"], "'a' is an alias already"),
    ],
)
def test_a_name_that_an_adapter_cannot_have_is_refused(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path, flags: list[str], fault: str
) -> None:
    adapter = write_adapter(tmp_path / "a", handle)
    refused = mlxk("serve", *(word.replace("PATH", str(adapter)) for word in flags))
    assert (refused.status, fault in refused.err) == (1, True), refused.err


def test_an_adapter_of_another_shape_is_named_with_its_tensor(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a", handle)
    other = build(tmp_path / "other", head_dim=32)
    with mlxk.serve("--model", other.directory, "--adapter", f"poet={adapter}") as server:
        status, _, answer = server.post("/v1/completions", {"model": "poet", "prompt": PROMPT})
        assert status == 400
        assert "model.layers.0.mlp.up_proj.lora_a: adapter shape (128, 4)" in answer["error"]["message"]
        assert complete(server, "other", PROMPT) == oracle(other, None, PROMPT)
