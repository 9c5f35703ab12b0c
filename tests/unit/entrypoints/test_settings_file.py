"""The settings file through the command line: where each setting comes from, and what is wrong in a file."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from mlxk.entrypoints.cli import served_names
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import build_parser, run
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.setting_kinds import SWITCH, TEXTS, WORDS
from mlxk.entrypoints.setting_table import ENTRY, TABLES, Setting
from mlxk.entrypoints.settings import ServerSettings, Settings, read_settings
from mlxk.entrypoints.settings_edit import toml
from mlxk.entrypoints.settings_file import MOST_BYTES

ALPHA = {"MLXK2_ENABLE_ALPHA_FEATURES": "1"}
Named = tuple[str, Setting]
ALL = [(table, setting) for table, settings in TABLES.items() for setting in settings]
IN_FLAGS = [each for each in ALL if each[1].flag and each[0] not in ("", "hub")]
APART = ("api_key_file", "embed_backend", "quantize_activations")  # these need more than a value, such as a GPU
SERVED = [each for each in IN_FLAGS if each[0] == "serve" and each[1].key not in APART]
OTHERS = {
    "color": (True, False),
    "log_level": ("debug", "error"),
    "host": ("::1", "0.0.0.0"),
    **dict.fromkeys(("endpoint", "embed_backend"), ("http://localhost:9", "https://hub.example")),
    "cors_origin": (["https://a.example"], ["https://b.example"]),
    "allow_media_path": (["/usr"], ["/etc"]),
    "cpu_dtype": ("model", "float32"),
    "blas": ("off", "auto"),
    **{"kv_bits": (4, 8), "kv_group_size": (32, 64), "max_kv_size": (64, 128), "prefix_cache_bits": (4, 8)},
    "kv_scheme": ("turboquant", "uniform"),
    "draft_kind": ("mtp", "model"),
    "rank_timeout": (10, 20),
    "reasoning_effort": ("low", "high"),
    "template_option": ({"date": "today"}, {"date": "tomorrow"}),
}


def two_values(setting: Setting) -> tuple[Any, Any]:
    """Return two values of a setting, of which the first one is not its default."""
    if setting.key in OTHERS:
        return OTHERS[setting.key]
    if setting.kind is SWITCH:
        return not setting.default, bool(setting.default)
    if setting.kind in (WORDS, TEXTS):
        return ["one"], ["two"]
    if "path" in setting.kind.words:
        return "/one", "/two"
    if "number" in setting.kind.words:
        return (1, 2) if setting.default != 1 else (2, 3)
    return "one", "two"


def written(table: str, setting: Setting, value: Any) -> str:
    """Return a file that sets one setting, with what it is refused without."""
    draft = "" if table == "serve" else 'draft_model = "demo"\n'
    needed = {
        "kv_group_size": "kv_bits = 8\n",
        "kv_scheme": "kv_bits = 4\n",
        "draft_tokens": draft,
        "draft_kind": draft,
    }.get(setting.key, "")
    return (f"[{table}]\n" if table else "") + f"{setting.key} = {toml(value)}\n" + needed


def as_variable(setting: Setting, value: Any) -> dict[str, str]:
    """Return the environment that sets it."""
    text = str(int(value is not setting.inverted)) if isinstance(value, bool) else str(value)
    return {setting.variables[0]: text}


def as_flag(setting: Setting, value: Any) -> list[str]:
    """Return the flag that sets it."""
    assert setting.flag
    if setting.key == "pipes":
        return [setting.flag]
    if isinstance(value, bool):
        return [setting.flag if value else f"--no-{setting.flag[2:]}"]
    if isinstance(value, dict):
        return [setting.flag, *(f"{key}={each}" for key, each in value.items())]
    return [setting.flag, value[0] if isinstance(value, list) else str(value)]


@attrs.define
class Machine:
    """A home with a settings file, and the commands run in it."""

    home: Path
    capsys: pytest.CaptureFixture[str]
    served: list[ServerSettings] = attrs.field(factory=list)

    @property
    def file(self) -> Path:
        """The settings file."""
        return self.home / ".config" / "mlxk" / "config.toml"

    def write(self, text: str | bytes) -> None:
        """Write the file."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(text.encode() if isinstance(text, str) else text)

    def settings(self, **variables: str) -> Settings:
        """Return what commands get."""
        return read_settings({"HOME": str(self.home), **variables})

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Run a command, and return its status, output and messages."""

        def serve(settings: Any, server: ServerSettings, announcement: Any) -> int:
            self.served.append(server)
            sys.stdout.write(announcement(ServerAddress(host=server.host, port=server.port or 1)) + "\n")
            return 0

        from mlxk.entrypoints.container import build

        context = CommandContext(self.settings(**variables), build, serve)
        return (run(arguments, context), *self.capsys.readouterr())

    def shown(self, table: str, key: str, *flags: str, **variables: str) -> tuple[Any, str]:
        """Return the value of a setting and its source, as ``config show`` has them."""
        line = ["--for", " ".join([table, *flags])] if flags else []
        status, out, err = self.run("config", "show", *line, "--json", **variables)
        assert (status, err) == (0, "")
        rows = json.loads(out)["data"]["settings"]
        ((value, source),) = (
            (row["value"], row["source"]) for row in rows if [table, key] == [row["table"], row["key"]]
        )
        return value, source


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


def names(cases: list[Named]) -> list[Any]:
    """Return the cases as parameters with names."""
    return [pytest.param(table, setting, id=f"{table}.{setting.key}".lstrip(".")) for table, setting in cases]


@pytest.mark.parametrize(("table", "setting"), names(ALL))
def test_the_file_decides_before_the_default_and_a_variable_before_the_file(
    machine: Machine, table: str, setting: Setting
) -> None:
    default = machine.shown(table, setting.key)
    assert default[1] == "default"
    expected = json.loads(json.dumps(setting.default))
    assert expected in (default[0], None) or str(default[0]).endswith(str(expected).lstrip("~")), default
    first, second = two_values(setting)
    machine.write(written(table, setting, first))
    assert machine.shown(table, setting.key) == ("<hidden>" if setting.secret else first, "file")
    if setting.variables:
        value = machine.shown(table, setting.key, **as_variable(setting, second))
        assert value == ("<hidden>" if setting.secret else second, "environment")


@pytest.mark.parametrize(("table", "setting"), names(IN_FLAGS))
def test_a_flag_decides_before_the_file(machine: Machine, table: str, setting: Setting) -> None:
    first, second = two_values(setting)
    machine.write(written(table, setting, first))
    model = () if table == "serve" else ("M",)
    value, source = machine.shown(table, setting.key, *model, *as_flag(setting, second), **ALPHA)
    assert source == "flag"
    assert value == second or setting.key in ("pipes", "template_option")


_MODEL = ("--model", "demo")
BESIDE = {"draft_model": _MODEL} | dict.fromkeys(("draft_tokens", "draft_kind"), (*_MODEL, "--draft-model", "demo"))
REFUSED_WITHOUT = {**BESIDE, "prefix_cache_disk": ("--prefix-cache-dir", "/kept"), "local_ranks": _MODEL}


@pytest.mark.parametrize(("table", "setting"), names(SERVED))
def test_the_server_gets_the_flag_or_else_the_variable_or_else_the_file(
    machine: Machine, table: str, setting: Setting
) -> None:
    first, second = two_values(setting)
    machine.write(written(table, setting, first))
    line = ("serve", *REFUSED_WITHOUT.get(setting.key, ()))
    for flag in ([], as_flag(setting, second)):
        assert machine.run(*line, *flag)[0] == 0
    values = [each.preferred.get(setting.key) or getattr(each, setting.attribute, None) for each in machine.served]
    if setting.key in BESIDE:
        assert [dict(each.model_defaults)["demo"][setting.key] for each in machine.served] == [first, second]
    elif setting.key == "desktop_apps":
        assert ["tauri://*" in each.cors_origins for each in machine.served] == [True, False]
    else:
        assert values == [tuple(each) if isinstance(each, list) else each for each in (first, second)]
    if setting.variables:
        machine.run("serve", **as_variable(setting, second))
        assert getattr(machine.served[-1], setting.attribute) == second


def test_a_key_of_the_file_opens_the_server_and_a_variable_replaces_it(machine: Machine) -> None:
    machine.write('[serve]\napi_key = "from the file"\napi_key_file = "~/keys"\n')
    status, _, err = machine.run("serve")
    assert (status, "keys" in err) == (1, True)
    machine.write('[serve]\napi_key = "from-the-file"\n')
    machine.run("serve")
    machine.run("serve", MLXK2_API_KEY="from-the-environment")
    assert [each.api_keys for each in machine.served] == [("from-the-file",), ("from-the-environment",)]


def test_another_server_makes_the_vectors(machine: Machine) -> None:
    machine.write('[serve]\nembed_backend = "http://localhost:9"\n')
    assert "MLXK2_ENABLE_ALPHA_FEATURES" in machine.run("serve")[2]
    machine.write('alpha_features = true\n[serve]\nembed_backend = "http://localhost:9"\n')
    machine.run("serve")
    machine.run("serve", "--embed-backend", "http://localhost:10")
    assert [each.embed_backend for each in machine.served] == ["http://localhost:9", "http://localhost:10"]


def test_a_server_for_vectors_takes_its_own_table(machine: Machine) -> None:
    machine.write("[embed-serve]\nport = 9100\nsupervisor = false\n[serve]\nport = 9200\n")
    for flags in ([], ["--port", "9300", "--supervisor"]):
        assert machine.run("embed-serve", "demo", *flags, **ALPHA)[0] == 0
    assert [(each.port, each.supervised) for each in machine.served] == [(9100, False), (9300, True)]


def test_the_hub_of_the_environment_is_that_of_any_of_its_variables(machine: Machine) -> None:
    machine.write('[hub]\ncache = "~/models"\ntoken_file = "/secret/token"\n')
    assert machine.settings().hub_cache == f"{machine.home}/models"
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        assert machine.settings(**{name: "/elsewhere"}).hub_cache.startswith("/elsewhere")


def test_chats_are_kept_only_where_the_file_says_so(machine: Machine) -> None:
    assert not machine.settings().keep_chats
    machine.write("[chat]\nkeep = true\n")
    assert machine.settings().keep_chats


def test_the_file_is_below_the_folder_of_settings(machine: Machine) -> None:
    assert machine.run("config", "path")[1] == f"{machine.file}\n"
    assert machine.run("config", "path", XDG_CONFIG_HOME="/xdg")[1] == "/xdg/mlxk/config.toml\n"
    assert machine.run("config", "path", XDG_CONFIG_HOME="")[1] == f"{machine.file}\n"


FAULTS = {
    "log_level = 'loud'\n": 'line 1: log_level must be one of debug, info, warning, error (got "loud")',
    "# first\n\nlog_levl = 'info'\n": "line 3: there is no setting 'log_levl'. Did you mean log_level?",
    "[sreve]\nport = 1\n": "line 1: there is no table 'sreve'. Did you mean serve?",
    "[serve]\nport = '80'\n": 'line 2: [serve] port must be a whole number from 0 to 65535 (got "80")',
    "[serve]\nport = 70000\n": "line 2: [serve] port must be at least 0 and at most 65535 (got 70000)",
    "[serve]\nport = true\n": "line 2: [serve] port must be a whole number from 0 to 65535 (got true)",
    "[serve]\nkeep_alive = nan\n": "line 2: [serve] keep_alive must be a number from 0 (got NaN)",
    "serve.port = 1.5\n": "line 1: [serve] port must be a whole number from 0 to 65535 (got 1.5)",
    "serve = 3\n": "line 1: [serve] serve must be a table, as in [serve]",
    "[serve]\ncors_origin = 'https://a'\n": 'line 2: [serve] cors_origin must be a list of texts of one line (got "https://a")',
    "[hub]\ncache = 'models'\n": 'line 2: [hub] cache must be a path that begins with / or ~/ (got "models")',
    "[hub]\ntoken = 123456\n": "line 2: [hub] token must be a text of one line",
    "[serve]\nlog_level = 'info'\n": (
        "line 2: [serve] there is no setting 'log_level' here. It belongs to the top of the file"
    ),
    "[run]\nattach = [\n  1,\n]\nverbos = true\n": "line 5: [run] there is no setting 'verbos'. Did you mean verbose?",
    "[run]\nkv_bits = 4\nmax_kv_size = 64\n": "line 1: [run] max_kv_size and kv_bits exclude each other",
    "[run]\nseed = 99999999999999999999\n": "line 2: [run] seed must be at least 0 and at most 18446744073709551615",
    "[[serve]]\nport = 1\n": "line 1: [serve] serve must be a table, as in [serve]",
    'log_level = "info\n': "line 1: it is not valid TOML: Illegal character '\\n'",
    "a = 1\na = 2\n": "line 2: it is not valid TOML: Cannot overwrite a value",
    "[serve\n": "line 1: it is not valid TOML",
    "a = " + "9" * 5000: "it is not valid TOML",
    "a = " + "[" * 5000 + "]" * 5000: "it is nested too deeply",
}


@pytest.mark.parametrize("text", FAULTS, ids=lambda text: text[:30])
def test_a_fault_is_named_with_its_line_and_table(machine: Machine, text: str) -> None:
    machine.write(text)
    status, _, err = machine.run("config")
    assert (status, FAULTS[text] in err, "Traceback" in err) == (0, True, False), err
    assert err.startswith("[~/.config/mlxk/config.toml: ")
    faults = json.loads(machine.run("config", "--json")[1])["data"]["faults"]
    assert FAULTS[text].partition("] ")[2] in faults[-1]["message"]
    if "123456" in text:
        assert "123456" not in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# caf\xe9\n", "line 1: it is not UTF-8 text"),
        (b"#\n" * MOST_BYTES, "it is larger than 256 KiB"),
        (b"\xef\xbb\xbfcolor = false\r\n", None),
        (b"", None),
    ],
)
def test_bytes_that_are_no_settings(machine: Machine, content: bytes, said: str | None) -> None:
    machine.write(content)
    err = machine.run("config")[2]
    assert (said or "") in err
    assert bool(err) is bool(said)


def test_a_folder_in_place_of_the_file_and_a_pipe_are_named(machine: Machine) -> None:
    machine.file.mkdir(parents=True)
    assert "Is a directory" in machine.run("config")[2]
    machine.file.rmdir()
    os.mkfifo(machine.file)
    # Opened for reading by nobody else, so that this would wait for ever if it waited.
    assert "no regular file" in machine.run("config")[2]


BROKEN = [
    "[serve]\nport = 'x'\n",
    "[run]\nverbos = true\n",
    "color = 1\n",
    "[hub]\ncach = 1\n",
    "[models.demo]\nmodel = 'x'\n",
    "?",
]


@pytest.mark.parametrize("text", BROKEN)
def test_commands_that_only_read_say_it_and_go_on(machine: Machine, text: str) -> None:
    machine.write(text)
    for line in (["list"], ["show", "demo"], ["health", "demo"], ["du"]):
        status, out, err = machine.run(*line)
        assert (status, bool(out), "config.toml: line 1" in err or "config.toml: line 2" in err) == (0, True, True)
        assert "mlxk config edit" in err
    for line in (["schema"], ["completion", "bash"], ["--version"]):
        assert machine.run(*line)[::2] == (0, "")


EVERY = {"serve", "run", "rm", "embed-serve"}
STOPPED = ({"serve"}, {"run"}, EVERY, EVERY, set[str](), EVERY)
"""The commands that each of the broken files stops."""


@pytest.mark.parametrize(("text", "stopped"), list(zip(BROKEN, STOPPED, strict=True)))
def test_commands_that_do_something_stop_at_a_fault_in_what_they_use(
    machine: Machine, text: str, stopped: set[str]
) -> None:
    machine.write(text)
    lines = [["serve"], ["run", "nosuch", "Hi"], ["rm", "nosuch", "--yes"], ["embed-serve", "demo"]]
    for line in lines:
        status, _, err = machine.run(*line, **ALPHA)
        assert ("Error: ~/.config/mlxk/config.toml: line" in err) is (line[0] in stopped), (line, err)
        assert "config.toml: line" in err
        assert status == (1 if line[0] in stopped or "nosuch" in line else 0)


def test_what_is_right_in_a_broken_file_holds(machine: Machine) -> None:
    machine.write("log_level = 'info'\n[run]\nverbos = true\n[serve]\nport = 9001\n")
    assert machine.run("serve")[0] == 0
    assert (machine.served[0].port, machine.served[0].log_level) == (9001, "info")


def test_no_secret_is_shown(machine: Machine) -> None:
    machine.write('[hub]\ntoken = "hf_filetoken"\n[serve]\napi_key = "sk-filekey"\n')
    shown = [
        machine.run("config", *json_flag, **variables)
        for json_flag in ([], ["--json"])
        for variables in ({}, {"HF_TOKEN": "hf_othertoken", "MLXK2_API_KEY": "sk-otherkey"})
    ]
    assert not re.search("hf_file|hf_other|sk-", str(shown))
    assert all(out.count("<hidden>") == 2 for _, out, _ in shown)


def test_the_page_lists_every_setting() -> None:
    page = (Path(__file__).parents[3] / "docs" / "settings.md").read_text(encoding="utf-8")
    listed = page.partition("## Settings of a name")[2]
    assert [line for line in listed.splitlines() if line.startswith("| `")] == list(rows())


def rows() -> Iterator[str]:
    """Yield the lines of the page's tables."""
    for setting in (each for each in ENTRY if each not in TABLES["run"]):
        yield f"| `{setting.key}` | {setting.meaning} | {setting.kind.words} |"
    for table, setting in ALL:
        default = "" if setting.default is None else f"`{toml(setting.default)}`"
        variable = f"`{setting.variables[0]}`" if setting.variables else ""
        flag = f"`{setting.flag}`" if setting.flag else ""
        name = f"{table}.{setting.key}".lstrip(".")
        yield f"| `{name}` | {setting.meaning} | {setting.kind.words} | {default} | {variable} | {flag} |"


@pytest.mark.parametrize(("table", "setting"), names(IN_FLAGS))
def test_every_flag_of_the_table_exists(table: str, setting: Setting) -> None:
    parser = build_parser(table).parse_args([table] + ([] if table == "serve" else ["M"])).parser
    action = parser._option_string_actions[setting.flag]
    assert setting.argument in (None, action.dest)
    assert isinstance(action, argparse.BooleanOptionalAction) or setting.kind is not SWITCH or setting.key == "pipes"


def test_the_defaults_are_those_of_the_program() -> None:
    server = ServerSettings()
    for setting in TABLES["serve"]:
        if setting.key not in ("desktop_apps", "api_key", *served_names._PREFERRED, *BESIDE):
            assert getattr(server, setting.attribute) == setting.default, setting.key
