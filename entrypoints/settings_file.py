"""The settings file: one TOML file of the user, read, checked and edited.

What is wrong in it is collected, so that everything else in it holds and each command decides what it needs. Edits
are in ``settings_edit``.
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
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}\n]|[^\[\]{}\n"\'#]+',
    re.DOTALL,
)
_DEPTH = 3
"""Parts of the longest path that a fault is about: the table of names, a name and a key."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")

Values = Mapping[str, Any]


@attrs.frozen
class SettingFault:
    """One fault of the file."""

    message: str
    table: str | None = None
    """The table, such as ``serve`` or ``models.NAME``; empty for the top, None where the file is no TOML at all."""
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}[{self.table}] {self.message}" if self.table else f"{place}{self.message}"


@attrs.frozen
class SettingsFile:
    """What the file says, as far as it is right."""

    path: str
    """Absolute, whether or not the file exists."""
    tables: Mapping[str, Values] = attrs.field(factory=dict, repr=False)
    """The values of each table; those at the top are in ''."""
    entries: Mapping[str, Values] = attrs.field(factory=dict, repr=False)
    """The tables of names, those without a fault."""
    faults: tuple[SettingFault, ...] = ()
    exists: bool = False
    readable: bool = True
    """Whether it is a regular file that this user may read."""

    @property
    def has_secrets(self) -> bool:
        """Whether it holds a key or a token."""
        return any(each.secret and each.key in self.values(name) for name, listed in TABLES.items() for each in listed)

    def values(self, table: str) -> Values:
        """Return the values of a table, by key."""
        return self.tables.get(table, {})

    def faults_of(self, *tables: str) -> tuple[SettingFault, ...]:
        """Return the faults of some tables, and those of the file as a whole."""
        return tuple(fault for fault in self.faults if fault.table is None or fault.table in tables)

    def as_variables(self, known: Mapping[str, str]) -> dict[str, str]:
        """Return the settings that have variables, under the names of these, without those of variables that are set.

        Args:
            known: The environment, without empty variables.
        """
        found = {}
        for name, settings in TABLES.items():
            for setting in settings:
                value = self.values(name).get(setting.key)
                if value is None or not setting.variables or known.keys() & set(setting.variables):
                    continue
                if not (setting.inverted and value):  # any text in NO_COLOR switches off
                    value = int(value is not setting.inverted) if isinstance(value, bool) else value
                    found[setting.variables[0]] = str(value)
        return found


def read(path: str) -> SettingsFile:
    """Read the file; one that does not exist says nothing. Never raises: what is wrong is in ``faults``."""
    try:
        content = private_files.read(path, MOST_BYTES)
    except OSError as error:
        fault = SettingFault(f"it cannot be read: {error.strerror}")
        return SettingsFile(path, faults=(fault,), exists=True, readable=False)
    return SettingsFile(path) if content is None else check(path, content)


def check(path: str, content: bytes) -> SettingsFile:
    """Return what the content of a settings file says, and its faults in the order of lines."""
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
    """Return a document.

    Raises:
        ValueError: It is not valid TOML; the message ends with the place.
        RecursionError: It is nested too deeply.
    """
    import tomllib  # noqa: PLC0415 - most commands run without a settings file, and start faster without it

    return tomllib.loads(text)


@attrs.frozen
class Statement:
    """One header or assignment of a valid document."""

    path: tuple[str, ...]
    """The table it begins, or the table and the key it assigns."""
    is_header: bool
    start: int
    end: int
    """Both as offsets in the text; the end is after the line break."""
    line: int


def statements(text: str) -> Iterator[Statement]:
    """Yield the statements of a valid document."""
    table: tuple[str, ...] = ()
    start, depth, line, begun = 0, 0, 1, 1
    for token in _TOKEN.finditer(text + "\n"):
        word = token[0]
        depth += (word in ("[", "{")) - (word in ("]", "}"))
        if word == "\n" and depth == 0:
            statement = text[start : token.end()]
            path = _path_of(statement)
            if path:
                is_header = statement.lstrip().startswith("[")
                table = path if is_header else table
                yield Statement(path if is_header else (*table, *path), is_header, start, token.end(), begun)
            start, begun = token.end(), line + 1
        line += word.count("\n")


def _path_of(statement: str) -> tuple[str, ...]:
    """Return the keys that a statement is about; nothing for a comment or a blank line."""
    path, value = [], parsed(statement)
    while isinstance(value, dict) and len(value) == 1:
        ((key, value),) = value.items()
        path.append(key)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return tuple(path)


def comment_of(statement: str) -> str:
    """Return the comment at the end of an assignment, with two spaces before it; empty without one."""
    words = [token[0] for token in _TOKEN.finditer(statement) if token[0].strip()]
    return f"  {words[-1].rstrip()}" if words and words[-1].startswith("#") else ""


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the first line of every table and key of a valid document; deeper keys have the line of theirs."""
    found: dict[tuple[str, ...], int] = {}
    for statement in statements(text):
        for length in range(1, min(len(statement.path), _DEPTH) + 1):
            found.setdefault(statement.path[:length], statement.line)
    return found


class _Reader:
    """Checks a parsed document against the table of settings."""

    def __init__(self, document: Values, lines: Mapping[tuple[str, ...], int]) -> None:
        self._document = document
        self._lines = lines
        self._faults: list[SettingFault] = []

    def file(self, path: str) -> SettingsFile:
        """Return what the document says, and its faults."""
        tables = {name: self._document.get(name, {}) for name in TABLES if name}
        names = self._document.get(MODELS, {})
        top = {key: value for key, value in self._document.items() if key not in {*tables, MODELS}}
        read = {"": self._table("", (), top, TABLES[""])}
        for name, table in tables.items():
            read[name] = self._table(name, (name,), table, TABLES[name])
        if fault := _range_fault(read["run"]):
            self._fault("run", ("run",), fault)
            read["run"] = {}
        entries = self._entries(names)
        faults = sorted(self._faults, key=lambda fault: fault.line or 0)
        return SettingsFile(path, read, entries, tuple(faults), exists=True)

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
                shown = f"must be {setting.kind.words}" if setting.secret else fault
                self._fault(name, (*path, key), f"{key} {shown}")
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
    """Return the fault of a key that does not exist, with the nearest that do, or with the tables that have it."""
    words = [*known, *(name for name in TABLES if name and at_top), *([MODELS] if at_top else [])]
    kind = "table" if isinstance(value, dict) and at_top else "setting"
    message = f"there is no {kind} '{key}'"
    if near := nearest(key, words):
        return f"{message}. Did you mean {' or '.join(near)}?"
    homes = [
        f"[{name}]" if name else "the top of the file"
        for name, settings in TABLES.items()
        if key in {each.key for each in settings}
    ]
    return f"{message} here. It belongs to {' or '.join(homes)}" if homes else message


def entry_name_fault(name: str) -> str | None:
    """Return why a name cannot be that of an entry; None when it can."""
    return own_name_fault(name) or ("it reads as the full name ORG/NAME of a model" if "/" in name else None)


def entry_fault(name: str, values: Values, names: Collection[str]) -> str | None:
    """Return what is wrong with the values of an entry together; each of them is right.

    Args:
        name: The entry.
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
    """Return what is wrong with values that are right by their kinds: bounds of the engine, and combinations."""
    try:
        profile_of(values).validate()
    except ValidationError as error:
        return error.message
    # Each of them would leave the draft model out of every request.
    other = next((key for key in ("max_kv_size", "thinking_budget") if key in values and "draft_model" in values), None)
    return None if other is None else f"draft_model and {other} exclude each other"


def profile_of(values: Values) -> Profile:
    """Return the profile of an entry or of the table of ``run``, whose values are right."""
    start, end = values.get("thinking_start_token"), values.get("thinking_end_token")
    tags = (
        None if start is None and end is None else (start or DEFAULT_THINKING_TAGS[0], end or DEFAULT_THINKING_TAGS[1])
    )
    sampled = {field.name for field in attrs.fields(GenerationSettings)} - {"stop"}
    effort, adapter = values.get("reasoning_effort"), values.get("adapter")
    return Profile(
        model=values.get("model", ""),
        system=values.get("system"),
        settings=GenerationSettings(
            **{key: value for key, value in values.items() if key in sampled}, stop=tuple(values.get("stop", ()))
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
    """The user's own names for models, and what holds for every model."""

    profiles: Mapping[str, Profile]
    usual: Profile

    @property
    def aliases(self) -> dict[str, str]:
        """The names, each with its reference."""
        return {name: profile.model for name, profile in self.profiles.items()}


def own_names(file: SettingsFile, served: tuple[tuple[str, Values], ...] | None, preferred: Values) -> OwnNames:
    """Return the names of commands, or those of a server, which has its own defaults for every model.

    Args:
        file: The settings file.
        served: The names of the server, with their values; None for a command.
        preferred: What a server prefers for every model that can do so, as settings of a name.
    """
    entries = file.entries.items() if served is None else served
    usual = profile_of(file.values("run") if served is None else preferred)
    if served is not None:
        usual = attrs.evolve(usual, engine_options=attrs.evolve(usual.engine_options, cache_required=False))
    return OwnNames({name: profile_of(values) for name, values in entries}, usual)


def table_name(*path: str) -> str:
    """Return the name of a table as a header writes it, without brackets."""
    return ".".join(each if _BARE.fullmatch(each) else json.dumps(each, ensure_ascii=False) for each in path)
