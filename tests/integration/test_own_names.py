"""Names of the user's own: written by commands, used by commands and through every HTTP API, on the real engine."""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from models.tiny_embedding import build_bert
from serving.running import RunningServer
from serving.settings_home import Machine
from serving.whole_program import WholeProgram

from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import ServerSettings, read_settings

SYSTEM = "You are a poet of few words."
SAMPLED = {"temperature": 1.5, "top_p": 0.95, "seed": 11}
QUESTION = "What is mlxk?"
FILE = f"""\
# My models.

[models.poet] # the best
model = "demo"
system = "{SYSTEM}"
temperature = 1.5   # wild
top_p = 0.95
seed = 11
max_tokens = 9

[run]
top_k = 40

[models.fast]
model = "demo"

[models.gone]
model = "/secret/place"
"""


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


def test_an_alias_is_written_listed_replaced_and_removed(mlxk: Machine) -> None:
    assert mlxk("alias").out == ""
    assert mlxk("alias", "fast", "demo").out == "fast = demo\n"
    assert stat.S_IMODE(mlxk.file.stat().st_mode) == 0o600
    assert mlxk("alias", "fast", "https://huggingface.co/org/x").out == "fast = org/x\n"
    assert mlxk("alias", "slow", "demo", "--json").data["names"] == [{"name": "slow", "values": {"model": "demo"}}]
    assert [each["name"] for each in mlxk("alias", "list", "--json").data["names"]] == ["fast", "slow"]
    assert "no name any more" in mlxk("alias", "rm", "fast").out
    assert mlxk("alias").out.splitlines()[2].split(" | ") == ["slow", "demo ", "no settings"]
    gone = mlxk("alias", "rm", "slwo")
    assert (gone.status, "Did you mean slow?" in gone.err) == (1, True)


def test_edits_keep_comments_order_mode_and_a_link(mlxk: Machine) -> None:
    mlxk.write(FILE)
    real = mlxk.home / "dotfiles.toml"
    mlxk.file.rename(real)
    real.chmod(0o640)
    mlxk.file.symlink_to(real)
    assert mlxk("profile", "poet", "--temperature", "0.5", "--stop", 'a "b"', "--unset", "seed").status == 0
    assert mlxk("alias", "fast", "demo-vision").status == 0
    assert mlxk("alias", "new one", "demo").status == 0
    expected = FILE.replace("temperature = 1.5   # wild", "temperature = 0.5  # wild").replace("seed = 11\n", "")
    expected = expected.replace("max_tokens = 9\n", 'max_tokens = 9\nstop = ["a \\"b\\""]\n')
    expected = expected.replace('[models.fast]\nmodel = "demo"', '[models.fast]\nmodel = "demo-vision"')
    assert real.read_text() == expected + '\n[models."new one"]\nmodel = "demo"\n'
    assert mlxk.file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert mlxk("profile", "rm", "poet").status == 0
    assert real.read_text().startswith("# My models.\n\n\n[run]\ntop_k = 40\n\n[models.fast]")


ELSEWHERE = [
    "[models]\npoet = {model = 'demo'}\n",
    "models.poet.model = 'demo'\n",
    "models = {poet = {model = 'demo', stop = ['#']}, fast = {model = 'demo'}}\n",
    "[models.poet]\nmodel = 'demo' # ]\nstop = [\n  'a', # one ]\n  '''b\n[models.x]\n''',\n]\n"
    "[models.poet.template_option]\na = 1\n",
]


@pytest.mark.parametrize("text", ELSEWHERE)
def test_a_name_in_any_form_is_changed_rightly_or_not_at_all(mlxk: Machine, text: str) -> None:
    mlxk.write(text)
    assert [each["name"] for each in mlxk("alias", "--json").data["names"]][-1] == "poet"
    done = mlxk("profile", "poet", "--seed", "3")
    if done.status == 0:
        assert mlxk("profile", "poet", "--json").data["names"][0]["values"]["seed"] == 3
    else:
        assert "mlxk config edit" in done.err
        assert mlxk.file.read_text() == text
    if mlxk("alias", "rm", "poet").status == 0:
        assert "poet" not in mlxk.file.read_text()


@pytest.mark.parametrize(
    "name", ["demo", "DEMO", "demo-vision", "./x", "/x", "~/x", "org/x", "a@b", "a*", " a", "", "a=b", "x" * 201]
)
def test_a_name_that_hides_something_is_refused_when_written_and_when_read(mlxk: Machine, name: str) -> None:
    for line in (["alias", name, "demo-speech"], ["profile", name, "--model", "demo-speech"]):
        refused = mlxk(*line)
        assert (refused.status, "cannot be a name" in refused.err) == (1, True)
    assert not mlxk.file.exists()
    mlxk.write(f'[models."{name}"]\nmodel = "demo-speech"\n[models.good]\nmodel = "demo"\n')
    listed = mlxk("list", "--json")
    assert (listed.status, "config.toml: line 1: [models." in listed.err) == (0, True)
    assert mlxk("show", "good", "--json").data["model"]["name"] == "demo"
    assert mlxk("show", "demo", "--json").data["model"]["name"] == "demo"
    mlxk("serve")
    assert [each for each, _ in mlxk.served[0].entries] == ["good"]


def test_a_name_with_a_fault_is_named_with_its_line_and_others_work(mlxk: Machine) -> None:
    mlxk.write('[models.poet]\nmodel = "demo"\ntemprature = 1\n[models.good]\nmodel = "demo"\n')
    for line in (["show", "poet"], ["run", "poet", "hi"], ["health", "poet"], ["serve", "-m", "poet"]):
        broken = mlxk(*line)
        assert broken.status == 1
        assert (
            "config.toml: line 3: [models.poet] there is no setting 'temprature'. Did you mean temperature?"
            in broken.err
        )
    assert mlxk("show", "good").status == 0


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"system": "x"}, "model is missing"),
        ({"model": "other"}, "'other' is itself a name of this file"),
        ({"model": "./here"}, "write the whole path"),
        ({"model": "demo", "pin": True, "keep_alive": 3}, "pin and keep_alive exclude each other"),
        ({"model": "demo", "kv_bits": 4, "max_kv_size": 64}, "max_kv_size and kv_bits exclude each other"),
        ({"model": "demo", "kv_group_size": 64}, "kv_group_size needs kv_bits"),
        ({"model": "demo", "thinking": "yes"}, "thinking must be true or false"),
    ],
)
def test_values_that_do_not_fit_are_refused_when_written_and_when_read(
    mlxk: Machine, values: dict[str, Any], fault: str
) -> None:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    mlxk.write(f'[models.other]\nmodel = "demo"\n[models.poet]\n{lines}')
    assert fault in mlxk("list").err
    mlxk.write('[models.other]\nmodel = "demo"\n')
    flags = [
        f"--{key.replace('_', '-')}" if value is True else f"--{key.replace('_', '-')}={value}"
        for key, value in values.items()
    ]
    refused = mlxk("profile", "poet", *flags)
    assert refused.status == 2 or fault in refused.err
    assert mlxk.file.read_text() == '[models.other]\nmodel = "demo"\n'


def test_a_name_works_in_commands(mlxk: Machine, tmp_path: Path) -> None:
    mlxk.write(FILE + f'[models.vectors]\nmodel = "{build_bert(tmp_path / "bert").directory}"\n')
    assert mlxk("show", "POET", "--json").data["model"]["name"] == "demo"
    assert "healthy" in mlxk("health", "fast").out
    vector = mlxk("embed", "vectors", "Hello", MLXK2_ENABLE_ALPHA_FEATURES="1")
    assert json.loads(vector.out)["embedding"]
    removed = mlxk("rm", "poet", "--yes")
    assert (removed.status, "mlxk alias rm poet" in removed.err) == (1, True)
    assert "Did you mean poet?" in mlxk("run", "pooet", "hi").err
    pulled = mlxk("pull", "fast")
    assert "demo" in pulled.out + pulled.err
    listed = mlxk("list")
    assert (listed.out.count("demo"), "4 names of your own: mlxk alias" in listed.err) == (3, True)
    assert mlxk("show", "poet").out.startswith(f'Name: poet (system = "{SYSTEM}", temperature = 1.5,')


@pytest.mark.mlx
def test_run_fills_in_what_the_command_line_leaves_out(mlxk: Machine) -> None:
    mlxk.write(FILE)
    plain = ("run", "demo", QUESTION, "--json", "--top-k", "40")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SAMPLED.items()]
    spelled = mlxk(*plain, "--system", SYSTEM, "--max-tokens", "9", *flags)
    own = mlxk("run", "poet", QUESTION, "--json")
    assert own.status == 0, own.err
    assert own.data["response"] == spelled.data["response"]
    assert own.data["usage"] == spelled.data["usage"]
    assert own.data["usage"]["completion_tokens"] == 9
    # A flag goes first; what [run] says holds for a model without a name.
    assert mlxk("run", "poet", QUESTION, "--json", "--max-tokens", "3").data["usage"]["completion_tokens"] == 3
    mlxk.write("[run]\nmax_tokens = 4\nseed = 1\n")
    assert mlxk("run", "demo", QUESTION, "--json").data["usage"]["completion_tokens"] == 4
    assert mlxk("run", "demo", QUESTION, "--json", "--max-tokens", "2").data["usage"]["completion_tokens"] == 2


def test_the_system_prompt_of_a_name_is_that_of_a_conversation_without_one(mlxk: Machine) -> None:
    mlxk.write(FILE)
    shown = mlxk("run", "poet", QUESTION, "--show-prompt").out
    assert SYSTEM in shown
    other = mlxk("run", "poet", QUESTION, "--show-prompt", "--system", "Be brief.").out
    assert "Be brief." in other
    assert SYSTEM not in other
    assert SYSTEM not in mlxk("run", "poet", QUESTION, "--show-prompt", "--no-chat-template").out


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the names of the file, as the command starts it."""
    home = tmp_path_factory.mktemp("home")
    # A module's fixture cannot have capsys, and nothing is printed here.
    machine = Machine(home, attrs.NOTHING)  # type: ignore[arg-type]
    machine.write(FILE)
    settings = read_settings({"HOME": str(home)})
    served: list[ServerSettings] = []
    context = CommandContext(settings, build, lambda _, server, __: len(served.append(server) or ()))
    assert run(["serve", "--alias", "quick=poet"], context) == 0
    program: Any = WholeProgram(home, served[0])
    with RunningServer(program) as running:
        yield running


Ask = Callable[..., dict[str, Any]]


def chat(server: RunningServer, model: str, limit: int | None, **more: Any) -> tuple[str, int, int]:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": QUESTION}], **more}
    status, _, answer = server.post("/v1/chat/completions", body | ({"max_tokens": limit} if limit else {}))
    assert status == 200, answer
    usage = answer["usage"]
    return answer["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"]


def responses(server: RunningServer, model: str, limit: int | None) -> tuple[str, int, int]:
    body: dict[str, Any] = {"model": model, "input": QUESTION, "store": False}
    status, _, answer = server.post("/v1/responses", body | ({"max_output_tokens": limit} if limit else {}))
    assert status == 200, answer
    text = "".join(part["text"] for item in answer["output"] for part in item.get("content") or [])
    return text, answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]


def messages(server: RunningServer, model: str, limit: int | None) -> tuple[str, int, int]:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": limit or 9}
    status, _, answer = server.post("/v1/messages", body)
    assert status == 200, answer
    usage = answer["usage"]
    read = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
    return "".join(part["text"] for part in answer["content"]), read, usage["output_tokens"]


def ollama(server: RunningServer, model: str, limit: int | None) -> tuple[str, int, int]:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": False}
    status, _, answer = server.post("/api/chat", body | ({"options": {"num_predict": limit}} if limit else {}))
    assert status == 200, answer
    return answer["message"]["content"], answer["prompt_eval_count"], answer["eval_count"]


@pytest.mark.mlx
@pytest.mark.parametrize("ask", [chat, responses, messages, ollama])
def test_every_api_fills_in_what_a_request_leaves_out(
    server: RunningServer, ask: Callable[[RunningServer, str, int | None], tuple[str, int, int]]
) -> None:
    spelled = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    wanted = chat(server, "demo", 9, messages=spelled, **SAMPLED)
    assert wanted[2] == 9
    assert ask(server, "poet", None) == wanted
    assert ask(server, "poet", 3)[2] == 3
    # An alias of this run, and an alias of the file, have no settings.
    assert ask(server, "quick", 3)[1] == ask(server, "fast", 3)[1] == ask(server, "demo", 3)[1] < wanted[1]


@pytest.mark.mlx
def test_fields_of_a_request_go_first(server: RunningServer) -> None:
    brief = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    fields = {"temperature": 0, "messages": brief}
    assert chat(server, "poet", 5, **fields) == chat(server, "demo", 5, **fields)
    status, _, text = server.post("/v1/completions", {"model": "poet", "prompt": "mlxk", "temperature": 0})
    assert (status, text["usage"]["completion_tokens"]) == (200, 9)
    count = server.post(
        "/v1/messages/count_tokens", {"model": "poet", "messages": [{"role": "user", "content": QUESTION}]}
    )
    assert count[2]["input_tokens"] == chat(server, "poet", 3)[1]


def test_names_are_models_of_their_own_in_listings(server: RunningServer) -> None:
    _, _, listed = server.get("/v1/models")
    known = {each["id"]: each for each in listed["data"]}
    assert {"poet", "fast", "quick", "demo"} <= known.keys()
    assert server.get("/v1/models/poet")[0] == 200
    tags = [each["name"] for each in server.get("/api/tags")[2]["models"]]
    assert {"poet:latest", "fast:latest"} <= set(tags)
    assert server.post("/api/show", {"model": "poet"})[0] == 200
    assert "gone" not in known
    for path in ("/v1/chat/completions", "/v1/messages"):
        asked = {"model": "gone", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
        status, _, refused = server.post(path, asked)
        assert (status, "secret" in str(refused)) == (404, False)


def test_config_shows_what_a_command_line_with_a_name_would_use(mlxk: Machine) -> None:
    mlxk.write(FILE + "[chat]\nkeep = true\n")
    shown = mlxk("config", "show", "--for", "run poet --top-p 0.5", "--json").data["settings"]
    said = {each["key"]: (each["value"], each["source"]) for each in shown if each["source"] != "default"}
    expected = {"system": (SYSTEM, "file"), "temperature": (1.5, "file"), "seed": (11, "file"), "top_p": (0.5, "flag")}
    assert said == {**expected, "max_tokens": (9, "file"), "top_k": (40, "file"), "keep": (True, "file")}
    assert {each["table"] for each in shown} == {"", "hub", "run", "chat"}


def test_flags_of_serve_decide_before_the_names_of_the_file(mlxk: Machine) -> None:
    mlxk.write(FILE + "[models.pinned]\nmodel = 'demo'\npin = true\nmax_tokens = 8\n[serve]\nmax_tokens = 20\n")
    for line, variables in (
        ([], {}),
        (["--max-tokens", "5", "--keep-alive", "60"], {}),
        ([], {"MLXK2_MAX_TOKENS": "6"}),
    ):
        assert mlxk("serve", *line, **variables).status == 0
    kept = [dict(each.entries)["pinned"] for each in mlxk.served]
    assert kept == [{"model": "demo", "pin": True, "max_tokens": 8}, {"model": "demo"}, {"model": "demo", "pin": True}]
    mlxk("serve", "--alias", "poet=demo-vision")
    assert "poet" not in dict(mlxk.served[-1].entries)


@pytest.mark.mlx
def test_a_server_for_vectors_serves_a_name(mlxk: Machine, tmp_path: Path) -> None:
    mlxk.write(f'[models.vectors]\nmodel = "{build_bert(tmp_path / "bert").directory}"\n')
    assert mlxk("embed-serve", "vectors", MLXK2_ENABLE_ALPHA_FEATURES="1").status == 0
    program: Any = WholeProgram(mlxk.home, mlxk.served[-1])
    with RunningServer(program) as server:
        status, _, answer = server.post("/v1/embeddings", {"model": "vectors", "input": "Hello"})
        assert (status, len(answer["data"])) == (200, 1)


@pytest.mark.mlx
def test_a_name_is_loaded_at_the_start_and_answers_requests_without_a_model(mlxk: Machine) -> None:
    mlxk.write(FILE)
    with mlxk.serve("--model", "poet") as server:
        assert chat(server, "", None)[2] == 9
        # The model's own name has none of the settings.
        assert chat(server, "demo", 3)[1] < chat(server, "poet", 3)[1]


def test_the_list_of_names_says_what_is_wrong_with_others(mlxk: Machine) -> None:
    mlxk.write('[models.good]\nmodel = "demo"\n[models.bad]\nmodel = "demo"\nbogus = 1\n')
    for line in (["alias"], ["alias", "list"], ["profile"]):
        listed = mlxk(*line)
        assert (listed.status, "good" in listed.out) == (0, True)
        assert "line 5: [models.bad] there is no setting 'bogus'" in listed.err


@pytest.mark.parametrize(
    ("line", "status", "fault"),
    [
        (["profile", "poet", "--temperature", "nan"], 1, "temperature must be a number from 0"),
        (["profile", "poet", "--template-option", 'x={"a": null}'], 1, "null cannot be written"),
        (["profile", "poet", "--system", "x", "--unset", "system"], 2, "--system and --unset system exclude each"),
        (["profile", "poet", "--top-p", "0.5", "--unset", "top_p"], 2, "--top-p and --unset top_p exclude each"),
        (["alias", "self", "self"], 1, "a name cannot mean itself"),
        (["profile", "poet", "--model", "poet"], 1, "a name cannot mean itself"),
    ],
)
def test_a_value_that_cannot_be_written_is_named(mlxk: Machine, line: list[str], status: int, fault: str) -> None:
    text = '[models.poet]\nmodel = "demo"\n'
    mlxk.write(text)
    refused = mlxk(*line)
    assert (refused.status, fault in refused.err) == (status, True), refused.err
    assert mlxk.file.read_text() == text


def test_a_name_whose_model_is_not_here_is_named_with_it(mlxk: Machine) -> None:
    mlxk("alias", "ghost", "no-such-model")
    refused = mlxk("run", "ghost", "hi")
    assert "'ghost' means no-such-model: no model found matching 'no-such-model'" in refused.err


def test_a_settings_file_that_is_a_folder_is_to_be_moved_away(mlxk: Machine) -> None:
    mlxk.file.mkdir(parents=True)
    refused = mlxk("run", "demo", "hi")
    assert refused.status == 1
    assert f"Move it away: {mlxk.file}" in refused.err


def test_the_models_of_a_server_have_the_fingerprint_of_their_answers(server: RunningServer) -> None:
    listed = {model["id"]: model["system_fingerprint"] for model in server.get("/v1/models")[2]["data"]}
    for name in ("poet", "quick", "demo"):
        body = {"model": name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
        assert server.post("/v1/chat/completions", body)[2]["system_fingerprint"] == listed[name]
