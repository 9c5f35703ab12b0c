"""``mlxk serve`` as a command: flags win over the environment, which wins over defaults."""

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from serving.parts import Parts
from serving.running import RunningServer

from mlxk.domain.errors import UsageError, ValidationError
from mlxk.entrypoints.api_keys import key_to_send, read_key_file
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import build_parser, run
from mlxk.entrypoints.cli.server_settings import DESKTOP_ORIGINS
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.settings import ServerSettings, read_settings


def serve(*arguments: str, status: int = 0, **variables: str) -> tuple[int, list[ServerSettings]]:
    """Run the command with a server that only notes how it was called."""
    seen: list[ServerSettings] = []

    def fake(settings: Any, server: ServerSettings, announcement: Any) -> int:
        seen.append(server)
        sys.stdout.write(announcement(ServerAddress(host=server.host, port=server.port or 4321)) + "\n")
        return status

    def unused(*_: Any) -> Any:
        raise AssertionError("not needed to serve")

    settings = read_settings({"HOME": "/home/ada", **variables})
    return run(
        ["serve", *arguments],
        CommandContext(settings=settings, build=unused, serve=fake),
    ), seen


def test_the_defaults_listen_on_this_machine_only() -> None:
    _, [server] = serve()
    assert (server.host, server.port, server.log_level, server.api_keys) == ("127.0.0.1", 8000, "info", ())
    assert server.cors_origins == ()
    assert not server.allow_paths
    assert not server.allow_model_changes
    assert server.supervised


def test_reasoning_has_defaults_for_requests_that_say_nothing() -> None:
    _, [server] = serve()
    assert (server.enable_thinking, server.thinking_budget) == (None, None)
    tags = ("--thinking-start-token", "<a>", "--thinking-end-token", "</a>")
    _, [server] = serve("--no-enable-thinking", "--thinking-budget", "0", *tags)
    assert (server.enable_thinking, server.thinking_budget) == (False, 0)
    assert (server.thinking_start_token, server.thinking_end_token) == ("<a>", "</a>")
    assert serve("--enable-thinking")[1][0].enable_thinking is True


def test_a_budget_of_reasoning_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, started = serve("--thinking-budget", "-1")
    assert (status != 0, started) == (True, [])
    assert "--thinking-budget" in capsys.readouterr().err


_SERVE = next(each.choices["serve"] for each in build_parser()._actions if isinstance(each.choices, dict))
_WITH_TEXT = [
    each.option_strings[-1]
    for each in _SERVE._actions
    if each.option_strings and each.nargs is None and each.type is None and each.choices is None
]


@pytest.mark.parametrize("flag", _WITH_TEXT)
def test_a_flag_without_its_text_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, started = serve(flag, "", MLXK2_ENABLE_ALPHA_FEATURES="1")
    assert (status, started) == (1, [])
    assert f"{flag} must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "flags", "field", "from_variable", "from_flag"),
    [
        ("MLXK2_HOST", "::1", ["--host", "localhost"], "host", "::1", "localhost"),
        ("MLXK2_PORT", "9000", ["--port", "0"], "port", 9000, 0),
        ("MLXK2_PRELOAD_MODEL", "a", ["--model", "b"], "model", "a", "b"),
        ("MLXK2_MAX_TOKENS", "5", ["--max-tokens", "6"], "max_tokens", 5, 6),
        ("MLXK2_VISION_CHUNK_SIZE", "2", ["--chunk", "3"], "chunk", 2, 3),
        ("MLXK2_LOG_LEVEL", "error", ["--log-level", "debug"], "log_level", "error", "debug"),
        ("MLXK2_LOG_LEVEL", "ERROR", ["--log-level", "DEBUG"], "log_level", "error", "debug"),
        ("MLXK2_LOG_LEVEL", "error", ["--verbose"], "log_level", "error", "debug"),
        ("MLXK2_LOG_JSON", "1", ["--log-json"], "log_json", True, True),
    ],
)
def test_a_flag_wins_over_a_variable(
    variable: str, value: str, flags: list[str], field: str, from_variable: Any, from_flag: Any
) -> None:
    _, [server] = serve(**{variable: value})
    assert getattr(server, field) == from_variable
    _, [server] = serve(*flags, **{variable: value})
    assert getattr(server, field) == from_flag


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\none\n\n two \n", encoding="utf-8")
    _, [server] = serve("--api-key-file", str(keys), MLXK2_API_KEY="three")
    assert (server.api_keys, server.api_key_file) == (("three",), str(keys))
    assert server.operator_key == "three"
    assert read_key_file(str(keys)) == ("one", "two")


def test_keys_of_a_pipe_are_read_once() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\n")
    os.close(writer)
    with open(reader, "rb"):
        _, [server] = serve("--api-key-file", f"/dev/fd/{reader}")
    assert (server.api_keys, server.api_key_file) == (("one", "two"), None)
    assert server.operator_key is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_key_file_may_be_written_by_any_editor(tmp_path: Path, encoding: str, end: str) -> None:
    keys = tmp_path / "keys"
    mark = "" if encoding in {"utf-8", "utf-8-sig", "utf-16"} else "\ufeff"
    keys.write_bytes((mark + f"schlüssel{end}# ours{end}two{end}").encode(encoding))
    assert read_key_file(str(keys)) == ("schlüssel", "two")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\xe4\n", b"x" * (2**20 + 1), b"\xef\xbb\xbf\n"])
def test_a_key_file_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(content)
    with pytest.raises(ValidationError, match=re.escape(f"--api-key-file: '{keys}'")):
        read_key_file(str(keys))


@pytest.mark.parametrize("key", ["schlüssel", "a\tb", "a\x7f"])
def test_a_key_that_no_header_can_hold_is_not_sent(tmp_path: Path, key: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# ours\n{key}\nplain\n", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        key_to_send(str(keys))
    assert refused.value.message == f"--api-key-file: the first key of '{keys}' cannot be sent"
    keys.write_text(f"plain\n{key}\n", encoding="utf-8")
    assert key_to_send(str(keys)) == "plain"


def test_a_key_file_without_an_end_is_refused() -> None:
    with pytest.raises(ValidationError, match="is larger than 1 MiB"):
        read_key_file("/dev/zero")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--cors-origin", each) for each in ("app.example", "https://", "https://a/b", "*.example", "http*://a", "a b")]
    + [("--allowed-host", each) for each in ("*", "*.example", "http://mac", "mac:8000", "mac/")],
)
def test_what_would_be_ignored_is_refused_at_the_start(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, seen = serve(flag, value)
    assert (status, seen) == (1, [])
    assert f"{flag}: '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "line", "page"),
    [
        ([], "for a browser: http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
        (["--no-page"], "for a browser: http://127.0.0.1:8000/docs", None),
        (["--host", "0.0.0.0"], "for a browser: http://127.0.0.1:8000/docs", None),
        (["--host", "0.0.0.0", "--page"], "for a browser: http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
    ],
)
def test_the_start_names_the_page_that_a_browser_gets(
    flags: list[str], line: str, page: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(*flags)
    assert line in capsys.readouterr().out.splitlines()
    serve(*flags, "--json")
    assert json.loads(capsys.readouterr().out)["data"].get("page") == page


def test_a_flag_may_list_several_with_commas() -> None:
    _, [server] = serve("--cors-origin", "https://a, chrome-extension://*", "--allowed-host", "mac,mac.local")
    assert server.cors_origins == ("https://a", "chrome-extension://*")
    assert server.allowed_hosts == ("mac", "mac.local")


def test_desktop_apps_are_allowed_by_one_flag() -> None:
    _, [server] = serve("--desktop-apps", "--cors-origin", "https://a")
    assert server.cors_origins == ("https://a", *DESKTOP_ORIGINS)


@pytest.mark.parametrize("content", ["", "# nothing\n", None])
def test_a_key_file_without_a_key_does_not_open_the_server(tmp_path: Path, content: str | None) -> None:
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_text(content, encoding="utf-8")
    status, seen = serve("--api-key-file", str(keys))
    assert (status, seen) == (1, [])


def test_limits_and_permissions_are_handed_on() -> None:
    _, [server] = serve(
        *("--max-streams", "4", "--max-queue", "5", "--max-body", "6", "--keep-alive", "7.5", "--memory-budget", "8"),
        *("--strict-memory", "--cors-origin", "null", "--cors-origin", "https://a", "--allowed-host", "mac.local"),
        *("--allow-model-paths", "--allow-model-changes", "--drain-timeout", "9", "--reload", "--no-supervisor"),
    )
    assert (server.max_streams, server.max_queue, server.max_body_mib, server.keep_alive) == (4, 5, 6, 7.5)
    assert (server.memory_budget_mib, server.strict_memory, server.drain_seconds) == (8, True, 9.0)
    assert (server.cors_origins, server.allowed_hosts) == (("null", "https://a"), ("mac.local",))
    assert (server.allow_paths, server.allow_model_changes) == (True, True)
    assert (server.reload, server.supervised) == (True, False)


def test_folders_and_addresses_of_media_are_allowed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, [server] = serve()
    assert (server.media_paths, server.allow_remote_media) == ((), False)
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    _, [server] = serve("--allow-media-path", "pictures", "--allow-media-path", "/usr/", "--allow-remote-media")
    assert (server.media_paths, server.allow_remote_media) == ((f"{tmp_path}/pictures", "/usr"), True)
    Path("file").touch()
    for wrong in ("absent", "file"):
        assert serve("--allow-media-path", wrong) == (1, [])
        assert f"--allow-media-path: '{wrong}' is not a folder" in capsys.readouterr().err


def test_what_is_kept_of_images_has_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    _, [server] = serve("--vision-cache-size", "0")
    assert server.vision_cache_mib == 0
    assert serve("--vision-cache-size", "-1") == (1, [])
    assert "--vision-cache-size" in capsys.readouterr().err


def test_prompts_are_kept_on_disk_in_a_folder_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, [server] = serve("--prefix-cache-dir", "~/kept", "--prefix-cache-disk", "2.5", HOME="/home/ada")
    assert (server.prefix_cache_dir, server.prefix_cache_disk_gib) == (os.path.expanduser("~/kept"), 2.5)
    assert serve("--prefix-cache-disk", "2.5") == (1, [])
    assert "--prefix-cache-dir" in capsys.readouterr().err


def test_the_defaults_shown_are_the_ones_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    default = ServerSettings()
    known = {
        "--max-streams": default.max_streams,
        "--max-queue": default.max_queue,
        "--max-body": default.max_body_mib,
        "--drain-timeout": default.drain_seconds,
    }
    page = (Path(__file__).parents[3] / "docs" / "server.md").read_text(encoding="utf-8")
    serve("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for flag, value in known.items():
        assert f"| `{flag}` | {value:g} |" in page
        assert re.search(rf"{flag} [A-Z]+ [^()]*\({value:g}\)", shown), flag


@pytest.mark.parametrize(
    "flags", [["--port", "70000"], ["--max-streams", "0"], ["--chunk", "6"], ["--max-tokens", "0"]]
)
def test_a_flag_out_of_range_starts_nothing(flags: list[str]) -> None:
    assert serve(*flags) == (1, [])


def test_the_ready_line_names_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    serve("--port", "0")
    assert "http://127.0.0.1:4321/v1" in capsys.readouterr().out


def test_with_json_the_ready_line_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    serve("--port", "0", "--model", "demo", "--json")
    lines = io.StringIO(capsys.readouterr().out).readlines()
    assert len(lines) == 1
    document = json.loads(lines[0])
    assert (document["status"], document["command"], document["data"]["port"]) == ("success", "serve", 4321)


def test_the_status_of_the_server_is_the_status_of_the_command() -> None:
    assert serve(status=1)[0] == 1
    assert serve(status=0)[0] == 0


ASKING = re.compile(r"^\| .+ \| (?:`(Host|Origin): (.+)`)? ?\| `mlxk serve ?(.*?)`.* \|$", re.M)
"""A row of the page about chat pages: what a request says, and with which flags the server answers it."""
PAGE = Path(__file__).parents[3] / "docs" / "clients" / "chat-uis.md"


@pytest.mark.parametrize("row", ASKING.findall(PAGE.read_text(encoding="utf-8")), ids=" ".join)
def test_whoever_asks_is_answered_with_the_flags_that_the_page_names(row: tuple[str, str, str]) -> None:
    header, value, flags = row
    asked = {header: value} if header else {}
    for given, answered in ((flags, True), ("", not flags or flags.startswith("--host"))):
        _, [settings] = serve(*shlex.split(given))
        with RunningServer(Parts(settings=settings)) as server:
            status, headers, body = server.get("/v1/models", **asked)
        assert (status == 200) is answered, body
        if header == "Origin" and answered:
            assert headers["access-control-allow-origin"] == value


def test_the_page_names_every_kind_of_client() -> None:
    assert len(ASKING.findall(PAGE.read_text(encoding="utf-8"))) == 13


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ((), "--model"),
        (("--model", "demo", "--draft-model", "demo"), "--draft-model"),
        (("--model", "demo", "--pin", "demo"), "--pin"),
        (("--model", "demo", "--adapter", "a=b"), "--adapter"),
        (("--model", "demo", "--kv-bits", "8"), "--kv-bits"),
        (("--model", "demo", "--max-kv-size", "64"), "--max-kv-size"),
        (("--model", "demo", "--keep-alive", "5"), "--keep-alive"),
        (("--model", "demo", "--prefix-cache-dir", "kept"), "--prefix-cache-dir"),
    ],
)
def test_what_a_spread_model_does_without_is_refused_by_name(
    flags: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve("--local-ranks", "2", *flags) == (2, [])
    assert word in capsys.readouterr().err
    assert serve("--local-ranks", "1", *(flags if word == "--keep-alive" else ()))[0] == 0
