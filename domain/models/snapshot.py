"""A snapshot of one model: its files, and the contents read from them (JSON, headers, model card, chat templates).

Detection and integrity are pure functions of a snapshot. ``application.use_cases.describe_model`` creates it.
"""

from collections.abc import Mapping
from typing import TypeGuard

import attrs

from mlxk.domain.models.file_formats import ABSENT, Document, SafetensorsHeader
from mlxk.domain.models.model import Origin

MAX_CARD_BYTES = 64 * 1024
"""Bytes of a card that are read; front matter comes first and is short."""

Scalar = str | tuple[str, ...]


@attrs.frozen
class ModelCard:
    """A model card's front matter."""

    fields: Mapping[str, Scalar] = attrs.field(factory=dict)
    """Key to text, or to texts for a list."""

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the values of a key as a list, whichever way they were written; empty when it is absent."""
        value = self.fields.get(key, ())
        return (value,) if isinstance(value, str) else value

    @property
    def license(self) -> str | None:
        """The license's identifier; several are joined with commas."""
        return ", ".join(self.texts("license")) or None

    @property
    def made_for_mlx(self) -> bool:
        """Whether the card says that the weights are in the format of MLX."""
        return "mlx" in self.texts("library_name") or any(tag.lower() == "mlx" for tag in self.texts("tags"))


def read_card(data: bytes) -> ModelCard:
    """Read a card's front matter. Never raises."""
    lines = data.decode("utf-8", errors="replace").lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return ModelCard()
    fields: dict[str, Scalar] = {}
    key = ""
    for line in lines[1:]:
        stripped = line.strip()
        if line.rstrip() in {"---", "..."}:
            return ModelCard(fields)
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.startswith("- ") and key:
            existing = fields.get(key)
            fields[key] = (*(existing if isinstance(existing, tuple) else ()), _text(stripped[2:]))
        elif line[0] not in " \t-":
            key = _read_pair(line, fields)
        elif line[0] in " \t" and not fields.get(key):
            key = ""  # a nested mapping: its lists are not this key's
    return ModelCard()


def _read_pair(line: str, fields: dict[str, Scalar]) -> str:
    """Add ``key: value`` to the fields and return the key when a block list may follow, else an empty text."""
    key, colon, remainder = line.partition(":")
    if not colon:
        return ""
    key, value = _text(key), remainder.strip()
    if value.startswith("["):
        items = value.partition("]")[0][1:].split(",")
        fields[key] = tuple(text for text in map(_text, items) if text)
        return ""
    fields[key] = _text(value)
    return "" if fields[key] else key


def _text(raw: str) -> str:
    """Return a scalar without quotes and trailing comment."""
    raw = raw.strip()
    if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "\"'":
        return raw[1:-1]
    return raw.partition(" #")[0].rstrip() if not raw.startswith("#") else ""


CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")
"""The weights of an adapter, by the two names that are in use."""
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
MODELOPT_CONFIG = "hf_quant_config.json"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"
README = "README.md"

LFS_POINTER_LIMIT = 200
"""Bytes; a Git LFS pointer is shorter, and no weight file is."""
LFS_MARKER = b"version https://git-lfs"
"""The first bytes of a Git LFS pointer."""


@attrs.frozen
class ModelSnapshot:
    """The files of one model as they were found."""

    name: str
    """``org/name``, or a workspace's directory."""
    origin: Origin = Origin.CACHE
    incomplete: bool = False
    """Whether the model is cached without any snapshot: a download that never finished a file."""
    files: Mapping[str, int] = attrs.field(factory=dict)
    """Path to size in bytes, of every regular file of the model."""
    strays: tuple[str, ...] = ()
    """Weight files in the directory that do not belong to the model, sorted."""
    dangling: tuple[str, ...] = ()
    """Dangling links, sorted."""
    documents: Mapping[str, Document] = attrs.field(factory=dict)
    """The JSON files that were read, by path."""
    headers: Mapping[str, SafetensorsHeader] = attrs.field(factory=dict)
    """The header of every safetensors file of the model, by path."""
    pointers: tuple[str, ...] = ()
    """Files that are Git LFS pointers instead of their content, sorted."""
    card: ModelCard = attrs.field(factory=ModelCard)
    template_files: Mapping[str, str] = attrs.field(factory=dict)
    """The chat templates in files of their own, by path."""
    expected: Mapping[str, int] = attrs.field(factory=dict)
    """Path to size in bytes as the hub listed them; empty without a record."""
    unfinished: int = 0
    """Number of unfinished downloads of this model."""
    published_for_mlx: bool = False
    """Whether it comes from a hub owner that publishes weights in the format of MLX only."""
    unread: tuple[str, ...] = ()
    """Files that were listed and then could not be read, because another process removed them or forbids it."""
    cut: tuple[str, ...] = ()
    """JSON files that were read in part and do not end as JSON objects do."""
    unreadable: str | None = None
    """Why the directory could not be listed; None when it could."""

    def document(self, path: str) -> Document:
        """Return a JSON file, ``ABSENT`` when there is none."""
        return self.documents.get(path, ABSENT)

    @property
    def config(self) -> dict[str, object]:
        """``config.json`` when it is an object, else an empty one."""
        return self.document(CONFIG).mapping

    @property
    def adapter_base(self) -> str | None:
        """The model that an adapter was trained on; None where it does not say."""
        return adapter_base(self.document(ADAPTER_CONFIG).mapping)

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter alone, which is of use with the model that it was trained on."""
        return CONFIG not in self.files and ADAPTER_CONFIG in self.files

    @property
    def from_hub(self) -> bool:
        """Whether it was downloaded into the cache; in a workspace a missing file may have been deleted."""
        return self.origin is Origin.CACHE

    @property
    def short_name(self) -> str:
        """The last part of the name, in lower case."""
        return self.name.rstrip("/").rpartition("/")[2].lower()

    def top_level(self, *suffixes: str) -> list[str]:
        """Return the files directly in the directory that end in one of the suffixes, sorted."""
        return sorted(path for path in self.files if path.endswith(suffixes) and "/" not in path)

    def has_any(self, *suffixes: str) -> bool:
        """Whether any file, however deep, ends in one of the suffixes."""
        return any(path.endswith(suffixes) for path in self.files)


TEMPLATE_DOCUMENT = "chat_template.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates/"
DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"


def is_template_file(path: str) -> bool:
    """Whether a file is a chat template of its own."""
    named = path.startswith(TEMPLATE_FOLDER) and path.endswith(".jinja") and path.count("/") == 1
    return path == TEMPLATE_FILE or named


def chat_templates(
    files: Mapping[str, str], tokenizer_config: Document, template_document: Document, processor_config: Document
) -> dict[str, str]:
    """Return the chat templates that a model is rendered with, by their names; empty when it has none.

    Files of their own have precedence, then ``tokenizer_config.json``, ``chat_template.json`` and
    ``processor_config.json``. There is a default among them, whatever it is called in the files.

    Args:
        files: The templates in files of their own, by path.
        tokenizer_config: ``tokenizer_config.json``.
        template_document: ``chat_template.json``.
        processor_config: ``processor_config.json``.
    """
    named = {_template_name(path): text for path, text in files.items() if text.strip()}
    for document in (tokenizer_config, template_document, processor_config):
        named = named or _templates(document)
    if named and DEFAULT_TEMPLATE not in named:
        first = min(named, key=lambda name: (name == TOOL_TEMPLATE, name))
        named = {DEFAULT_TEMPLATE: named[first], **named}
    return named


def _template_name(path: str) -> str:
    return DEFAULT_TEMPLATE if path == TEMPLATE_FILE else path[len(TEMPLATE_FOLDER) : -len(".jinja")]


def _templates(document: Document) -> dict[str, str]:
    """Return the templates under ``chat_template``: one text, or named ones in a list or an object."""
    value = document.mapping.get("chat_template")
    if isinstance(value, str):
        value = {DEFAULT_TEMPLATE: value}
    pairs: list[tuple[object, object]] = list(value.items()) if isinstance(value, dict) else []
    for item in value if isinstance(value, list) else ():
        pairs.append((item.get("name"), item.get("template")) if isinstance(item, dict) else (DEFAULT_TEMPLATE, item))
    texts = ((name, text) for name, text in pairs if isinstance(name, str) and isinstance(text, str))
    return {name: text for name, text in texts if text.strip()}


_LITTER_FOLDERS = frozenset(
    {
        "__macosx", ".appledouble", ".spotlight-v100", ".trashes", ".trash", ".fseventsd", ".temporaryitems",
        ".documentrevisions-v100", "temporary items", "network trash folder", "$recycle.bin",
        "system volume information", "lost+found", "@eadir", "#recycle", "@recycle", ".@__thumb",
    }
)  # fmt: skip
_LITTER_NAMES = frozenset(
    {
        ".ds_store", ".localized", ".apdisk", ".volumeicon.icns", "icon\r", "thumbs.db", "ehthumbs.db",
        "ehthumbs_vista.db", "desktop.ini", ".directory", "thumbs.db:encryptable",
    }
)  # fmt: skip
_LITTER_BEGINNINGS = ("._", ".nfs0", ".smbdelete", ".fuse_hidden", ".afpdeleted", "~$")
_LITTER_ENDINGS = (":zone.identifier", ":afp_afpinfo", ":afp_resource", ":com.apple.quarantine")


def is_litter(path: str) -> bool:
    """Whether a file was left by macOS, Windows or a network drive: its name, or a folder it is in."""
    *folders, name = path.lower().split("/")
    return (
        name in _LITTER_NAMES
        or name.startswith(_LITTER_BEGINNINGS)
        or name.endswith(_LITTER_ENDINGS)
        or any(folder in _LITTER_FOLDERS or folder.startswith("._") for folder in folders)
    )


def has_default_template(found: object) -> TypeGuard[str | dict[str, str]]:
    """Whether what a library has found as chat templates renders a conversation without tools."""
    return (isinstance(found, str) and bool(found.strip())) or (isinstance(found, dict) and DEFAULT_TEMPLATE in found)


_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder_config")


def text_section(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return a config with what it states about its language model, which models of several parts keep in a section."""
    for name in _TEXT_SECTIONS:
        nested = config.get(name)
        if isinstance(nested, Mapping) and nested:
            own = {key: value for key, value in config.items() if key not in _TEXT_SECTIONS}
            return {**own, **text_section(nested)}
    return config


def own_text_section(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return what a config states about its language model itself, without what it states about all parts."""
    for name in _TEXT_SECTIONS:
        nested = config.get(name)
        if isinstance(nested, Mapping) and nested:
            return own_text_section(nested)
    return config


def adapter_base(config: Mapping[str, object]) -> str | None:
    """Return the model that the config of an adapter names as its base."""
    named = config.get("model", config.get("base_model_name_or_path"))
    return named if isinstance(named, str) and named.strip() else None
