"""The settings file: one TOML file of the user, read and checked; ``settings_edit`` changes it.

Faults are collected, not raised: valid settings stay in force, and each command decides which faults stop it.
"""

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.profile import Profile
from mlxk.domain.generation.settings import DEFAULT_THINKING_TAGS, Effort, EngineOptions, GenerationSettings
from mlxk.domain.models.reference import is_path, own_name, own_name_fault
from mlxk.domain.text import nearest
from mlxk.entrypoints import private_files
from mlxk.entrypoints.setting_table import ENTRY, MODELS, TABLES, Setting

MOST_BYTES = 256 * 1024
"""Largest file that is read."""

_PLACE = re.compile(r"\s*\(at line (\d+), column (\d+)\)$")
"""Matches the position at the end of a message of ``tomllib``."""
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}\n]|[^\[\]{}\n"\'#]+',
    re.DOTALL,
)
"""Matches one token of TOML: a string, a comment, a bracket, a line break, or any other text."""
_DEPTH = 3
"""Length of the longest key path that a fault names: ``models``, a name and a key."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")
"""Matches a key that needs no quotes."""

Values = Mapping[str, Any]


@attrs.frozen
class SettingFault:
    """One fault of the file."""

    message: str
    table: str | None = None
    """The table, such as ``serve`` or ``models.NAME``; '' for keys outside of tables, None where no TOML was read."""
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}[{self.table}] {self.message}" if self.table else f"{place}{self.message}"


@attrs.frozen
class SettingsFile:
    """The valid settings of the file, and its faults."""

    path: str
    """Absolute path; the file need not exist."""
    tables: Mapping[str, Values] = attrs.field(factory=dict, repr=False)
    """The values of each table; the key '' has those outside of any table."""
    entries: Mapping[str, Values] = attrs.field(factory=dict, repr=False)
    """The tables of the user's names for models, without those that have a fault."""
    faults: tuple[SettingFault, ...] = ()
    exists: bool = False
    readable: bool = True
    """Whether it is a regular file that this user may read."""

    @property
    def has_secrets(self) -> bool:
        """Whether it holds an API key or a token of the hub."""
        return any(each.secret and each.key in self.values(name) for name, listed in TABLES.items() for each in listed)

    def values(self, table: str) -> Values:
        """Return the values of a table, by key."""
        return self.tables.get(table, {})

    def faults_of(self, *tables: str) -> tuple[SettingFault, ...]:
        """Return the faults of the given tables, and those of the file as a whole."""
        return tuple(fault for fault in self.faults if fault.table is None or fault.table in tables)

    def as_variables(self, known: Mapping[str, str]) -> dict[str, str]:
        """Return settings as environment variables, except where the environment sets one of the setting's variables.

        Args:
            known: The environment, without empty variables.
        """
        variables = {}
        for name, settings in TABLES.items():
            for setting in settings:
                value = self.values(name).get(setting.key)
                if value is None or not setting.variables or known.keys() & set(setting.variables):
                    continue
                if not (setting.inverted and value):  # any value of NO_COLOR, even 0, would switch colours off
                    value = int(value is not setting.inverted) if isinstance(value, bool) else value
                    variables[setting.variables[0]] = str(value)
        return variables


def read(path: str) -> SettingsFile:
    """Read the file; a missing one has no settings. Never raises: errors are in ``faults``."""
    try:
        content = private_files.read(path, MOST_BYTES)
    except OSError as error:
        fault = SettingFault(f"it cannot be read: {error.strerror}")
        return SettingsFile(path, faults=(fault,), exists=True, readable=False)
    return SettingsFile(path) if content is None else check(path, content)


def check(path: str, content: bytes) -> SettingsFile:
    """Parse and check the content of a settings file; its faults are in the order of lines."""
    if len(content) > MOST_BYTES:
        return SettingsFile(path, faults=(SettingFault(f"it is larger than {MOST_BYTES // 1024} KiB"),), exists=True)
    try:
        text = content.decode("utf-8-sig")
        return _Reader(parsed(text), _lines(text)).file(path)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return SettingsFile(path, faults=(SettingFault("it is not UTF-8 text", line=line),), exists=True)
    except RecursionError:
        return SettingsFile(path, faults=(SettingFault("it is nested too deeply"),), exists=True)
    except ValueError as error:  # TOMLDecodeError, or a number with too many digits
        place = _PLACE.search(str(error))
        message = f"it is not valid TOML: {_PLACE.sub('', str(error))}"
        fault = SettingFault(message, line=int(place[1]) if place else None)
        return SettingsFile(path, faults=(fault,), exists=True)


def parsed(text: str) -> dict[str, Any]:
    """Return a TOML document.

    Raises:
        ValueError: It is not valid TOML; the message ends with the position.
        RecursionError: It is nested too deeply.
    """
    import tomllib  # noqa: PLC0415 - most commands run without a settings file, and start faster without it

    return tomllib.loads(text)


@attrs.frozen
class Statement:
    """One table header or assignment of a valid document."""

    path: tuple[str, ...]
    """Of a header, the keys of its table; of an assignment, those of its table and its own."""
    is_header: bool
    start: int
    """Offset in the text, in characters."""
    end: int
    """Offset after its line break."""
    line: int
    """Its first line, from 1."""


def statements(text: str) -> Iterator[Statement]:
    """Yield the statements of a valid document."""
    table: tuple[str, ...] = ()
    start, depth, line, first_line = 0, 0, 1, 1
    for token in _TOKEN.finditer(text + "\n"):
        word = token[0]
        depth += (word in ("[", "{")) - (word in ("]", "}"))
        if word == "\n" and depth == 0:
            statement = text[start : token.end()]
            path = _path_of(statement)
            if path:
                is_header = statement.lstrip().startswith("[")
                table = path if is_header else table
                yield Statement(path if is_header else (*table, *path), is_header, start, token.end(), first_line)
            start, first_line = token.end(), line + 1
        line += word.count("\n")


def _path_of(statement: str) -> tuple[str, ...]:
    """Return the key path of a header or an assignment; empty for a comment or a blank line."""
    path, value = [], parsed(statement)
    while isinstance(value, dict) and len(value) == 1:
        ((key, value),) = value.items()
        path.append(key)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return tuple(path)


def comment_of(statement: str) -> str:
    """Return the comment at the end of an assignment, after two spaces; empty without one."""
    tokens = [token[0] for token in _TOKEN.finditer(statement) if token[0].strip()]
    return f"  {tokens[-1].rstrip()}" if tokens and tokens[-1].startswith("#") else ""


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the first line of each key path of a valid document, up to ``_DEPTH`` keys long."""
    lines: dict[tuple[str, ...], int] = {}
    for statement in statements(text):
        for length in range(1, min(len(statement.path), _DEPTH) + 1):
            lines.setdefault(statement.path[:length], statement.line)
    return lines


class _Reader:
    """Checks a parsed document against the table of settings.

    Args:
        document: The parsed file.
        lines: The line of each key path, see ``_lines``.
    """

    def __init__(self, document: Values, lines: Mapping[tuple[str, ...], int]) -> None:
        self._document = document
        self._lines = lines
        self._faults: list[SettingFault] = []

    def file(self, path: str) -> SettingsFile:
        """Return the checked file; ``path`` is only stored in it."""
        tables = {name: self._document.get(name, {}) for name in TABLES if name}
        names = self._document.get(MODELS, {})
        top = {key: value for key, value in self._document.items() if key not in {*tables, MODELS}}
        values = {"": self._table("", (), top, TABLES[""])}
        for name, table in tables.items():
            values[name] = self._table(name, (name,), table, TABLES[name])
        if fault := _range_fault(values["run"]):
            self._fault("run", ("run",), fault)
            values["run"] = {}
        entries = self._entries(names)
        faults = sorted(self._faults, key=lambda fault: fault.line or 0)
        return SettingsFile(path, values, entries, tuple(faults), exists=True)

    def _fault(self, table: str, path: tuple[str, ...], message: str) -> None:
        line = next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), None)
        self._faults.append(SettingFault(message, table, line))

    def _table(self, name: str, path: tuple[str, ...], table: object, settings: tuple[Setting, ...]) -> Values:
        if not isinstance(table, dict):
            self._fault(name, path, f"{path[-1]} must be a table, as in [{name}]")
            return {}
        known, found = {setting.key: setting for setting in settings}, {}
        for key, value in table.items():
            setting = known.get(key)
            if setting is None:
                self._fault(name, (*path, key), _unknown(key, value, known, at_top=not name))
            elif fault := setting.kind.fault(value):
                message = f"must be {setting.kind.words}" if setting.secret else fault
                self._fault(name, (*path, key), f"{key} {message}")
            else:
                found[key] = value
        return found

    def _entries(self, names: object) -> Mapping[str, Values]:
        if not isinstance(names, dict):
            self._fault(MODELS, (MODELS,), f"{MODELS} must be a table, as in [{MODELS}.NAME]")
            return {}
        found, sound = {}, [name for name in names if entry_name_fault(name) is None]
        for name, table in names.items():
            before = len(self._faults)
            shown, path = table_name(MODELS, name), (MODELS, name)
            if fault := entry_name_fault(name):
                self._fault(shown, path, f"'{name}' cannot be a name: {fault}")
            values = self._table(shown, path, table, ENTRY)
            if len(self._faults) == before and (fault := entry_fault(name, values, sound)):
                self._fault(shown, path, fault)
            if len(self._faults) == before:
                found[name] = values
        return found


def _unknown(key: str, value: object, known: Mapping[str, Setting], *, at_top: bool) -> str:
    """Return the message about an unknown key, with similar keys, or with the tables that have this key."""
    candidates = [*known, *(name for name in TABLES if name and at_top), *([MODELS] if at_top else [])]
    kind = "table" if isinstance(value, dict) and at_top else "setting"
    message = f"there is no {kind} '{key}'"
    if near := nearest(key, candidates):
        return f"{message}. Did you mean {' or '.join(near)}?"
    homes = [
        f"[{name}]" if name else "the top of the file"
        for name, settings in TABLES.items()
        if key in {each.key for each in settings}
    ]
    return f"{message} here. It belongs to {' or '.join(homes)}" if homes else message


def entry_name_fault(name: str) -> str | None:
    """Return why a text cannot be a user's name for a model; None when it can."""
    return own_name_fault(name) or ("it reads as the full name ORG/NAME of a model" if "/" in name else None)


def entry_fault(name: str, values: Values, names: Collection[str]) -> str | None:
    """Return why the values of an entry, each valid by itself, do not fit together; None when they do.

    Args:
        name: The entry's name.
        values: Its values.
        names: The names of all entries.
    """
    reference = values.get("model")
    if reference is None:
        return "model is missing: it says which model the name stands for"
    if reference == name:
        return "model: a name cannot mean itself; write the whole name of its model"
    other = own_name(reference, names)
    if other not in (None, name):
        return f"model: '{other}' is itself a name of this file; write the model that it stands for"
    if is_path(reference) and not reference.startswith(("/", "~/")):
        return f"model: '{reference}' depends on the directory of a command; write the whole path"
    if values.get("pin") and "keep_alive" in values:
        return "pin and keep_alive exclude each other"
    return _range_fault(values)


def _range_fault(values: Values) -> str | None:
    """Return why values that are valid by their kinds are beyond the engine's bounds, or exclude each other."""
    try:
        profile_of(values).validate()
    except ValidationError as error:
        return error.message
    # With either of these settings, no request uses the draft model.
    other = next((key for key in ("max_kv_size", "thinking_budget") if key in values and "draft_model" in values), None)
    return None if other is None else f"draft_model and {other} exclude each other"


def profile_of(values: Values) -> Profile:
    """Return the profile that the valid values of an entry, or of the table ``run``, describe."""
    start, end = values.get("thinking_start_token"), values.get("thinking_end_token")
    tags = (
        None if start is None and end is None else (start or DEFAULT_THINKING_TAGS[0], end or DEFAULT_THINKING_TAGS[1])
    )
    sampling_keys = {field.name for field in attrs.fields(GenerationSettings)} - {"stop"}
    effort, adapter = values.get("reasoning_effort"), values.get("adapter")
    return Profile(
        model=values.get("model", ""),
        system=values.get("system"),
        settings=GenerationSettings(
            **{key: value for key, value in values.items() if key in sampling_keys}, stop=tuple(values.get("stop", ()))
        ),
        thinking=values.get("thinking"),
        effort=None if effort is None else Effort(effort),
        thinking_tags=tags,
        template_options=values.get("template_option", {}),
        engine_options=EngineOptions(
            adapter=adapter and os.path.abspath(os.path.expanduser(adapter)),
            draft_tokens=values.get("draft_tokens"),
            kv_bits=values.get("kv_bits"),
            kv_scheme=values.get("kv_scheme"),
            kv_group_size=values.get("kv_group_size"),
            max_kv_size=values.get("max_kv_size"),
            prefix_cache_bits=values.get("prefix_cache_bits"),
            quantize_activations=values.get("quantize_activations"),
        ),
        draft_reference=values.get("draft_model"),
        draft_kind=values.get("draft_kind"),
        context_limit=values.get("context"),
        keep_alive_seconds=math.inf if values.get("pin") else values.get("keep_alive"),
        alternatives_limit=values.get("top_logprobs_k"),
    )


@attrs.frozen
class OwnNames:
    """The user's own names for models, and the default profile."""

    profiles: Mapping[str, Profile]
    """By name."""
    usual: Profile
    """Holds for every model."""

    @property
    def aliases(self) -> dict[str, str]:
        """The model reference of each name."""
        return {name: profile.model for name, profile in self.profiles.items()}


def own_names(file: SettingsFile, served: tuple[tuple[str, Values], ...] | None, preferred: Values) -> OwnNames:
    """Return the names and default profile of a command, or of a server, which has its own.

    Args:
        file: The settings file.
        served: The names of the server, with their values; None for a command.
        preferred: The server's settings for every model that supports them, by key.
    """
    entries = file.entries.items() if served is None else served
    usual = profile_of(file.values("run") if served is None else preferred)
    if served is not None:
        usual = attrs.evolve(usual, engine_options=attrs.evolve(usual.engine_options, cache_required=False))
    return OwnNames({name: profile_of(values) for name, values in entries}, usual)


def table_name(*path: str) -> str:
    """Return the dotted name of a table, as in its header, with keys quoted where TOML needs it."""
    return ".".join(key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False) for key in path)
