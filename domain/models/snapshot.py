"""A snapshot of one model: its files and the contents read from them (JSON, headers, model card, chat templates).

Detection and integrity are pure functions of a snapshot; ``application.use_cases.describe_model`` creates it.
"""

from collections.abc import Mapping
from typing import TypeGuard

import attrs

from mlxk.domain.models.file_formats import ABSENT, Document, SafetensorsHeader
from mlxk.domain.models.model import Origin

MAX_CARD_BYTES = 64 * 1024
"""Bytes of a model card to read; its front matter comes first and is short."""

Scalar = str | tuple[str, ...]


@attrs.frozen
class ModelCard:
    """A model card's front matter."""

    fields: Mapping[str, Scalar] = attrs.field(factory=dict)
    """Key to text, or to texts for a list."""

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the values of a key, also of one written as a single text; empty when the key is missing."""
        value = self.fields.get(key, ())
        return (value,) if isinstance(value, str) else value

    @property
    def license(self) -> str | None:
        """Identifier of the license; several are joined by commas."""
        return ", ".join(self.texts("license")) or None

    @property
    def made_for_mlx(self) -> bool:
        """Whether the card states the MLX format, as library or tag."""
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
    """Add ``key: value`` to the fields; return the key if a block list may follow, else an empty text."""
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
    """Return a scalar without quotation marks and trailing comment."""
    raw = raw.strip()
    if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "\"'":
        return raw[1:-1]
    return raw.partition(" #")[0].rstrip() if not raw.startswith("#") else ""


CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")
"""The two usual names of an adapter's weights."""
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
MODELOPT_CONFIG = "hf_quant_config.json"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"
README = "README.md"

LFS_POINTER_LIMIT = 200
"""Size below which a file may be a Git LFS pointer; no weight file is so small."""
LFS_MARKER = b"version https://git-lfs"
"""The first bytes of a Git LFS pointer."""


@attrs.frozen
class ModelSnapshot:
    """The files of one model at one moment. Paths are relative to the model's directory."""

    name: str
    """``org/name``, or a workspace's directory."""
    origin: Origin = Origin.CACHE
    incomplete: bool = False
    """Whether the cache has the model without a snapshot: its download has not finished any file."""
    files: Mapping[str, int] = attrs.field(factory=dict)
    """Path to size in bytes, for every regular file of the model."""
    strays: tuple[str, ...] = ()
    """Weight files in the directory that do not belong to the model, sorted."""
    dangling: tuple[str, ...] = ()
    """Dangling links, sorted."""
    documents: Mapping[str, Document] = attrs.field(factory=dict)
    """Path to content of the JSON files that were read."""
    headers: Mapping[str, SafetensorsHeader] = attrs.field(factory=dict)
    """Path to header, for every safetensors file of the model."""
    pointers: tuple[str, ...] = ()
    """Git LFS pointers in place of files, sorted."""
    card: ModelCard = attrs.field(factory=ModelCard)
    template_files: Mapping[str, str] = attrs.field(factory=dict)
    """Path to text of the chat template files."""
    expected: Mapping[str, int] = attrs.field(factory=dict)
    """Path to size in bytes by the hub's listing; empty without a record of the download."""
    unfinished: int = 0
    """Number of unfinished downloads of this model."""
    published_for_mlx: bool = False
    """Whether its owner on the hub publishes weights only in the MLX format."""
    unread: tuple[str, ...] = ()
    """Listed files that could not be read, because another process removed them or permission is missing."""
    cut: tuple[str, ...] = ()
    """JSON files that were read in part and whose end is not the end of an object."""
    unreadable: str | None = None
    """Why the directory could not be listed; None when it could."""

    def document(self, path: str) -> Document:
        """Return a JSON file; ``ABSENT`` for one that was not read."""
        return self.documents.get(path, ABSENT)

    @property
    def config(self) -> dict[str, object]:
        """``config.json`` when it is an object, else an empty object."""
        return self.document(CONFIG).mapping

    @property
    def adapter_base(self) -> str | None:
        """The base model by the adapter's config; None where it does not name one."""
        return adapter_base(self.document(ADAPTER_CONFIG).mapping)

    @property
    def is_adapter(self) -> bool:
        """Whether the files are an adapter without a base model."""
        return CONFIG not in self.files and ADAPTER_CONFIG in self.files

    @property
    def from_hub(self) -> bool:
        """Whether it is in the cache, so that a missing file was not downloaded; in a workspace it may be deleted."""
        return self.origin is Origin.CACHE

    @property
    def short_name(self) -> str:
        """The last part of the name, in lower case."""
        return self.name.rstrip("/").rpartition("/")[2].lower()

    def top_level(self, *suffixes: str) -> list[str]:
        """Return the files at the top of the directory that end in one of the suffixes, sorted."""
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
    """Whether a file is a chat template."""
    additional = path.startswith(TEMPLATE_FOLDER) and path.endswith(".jinja") and path.count("/") == 1
    return path == TEMPLATE_FILE or additional


def chat_templates(
    files: Mapping[str, str], tokenizer_config: Document, template_document: Document, processor_config: Document
) -> dict[str, str]:
    """Return name to text of the chat templates that apply to a model; empty when it has none.

    Template files have precedence, then ``tokenizer_config.json``, ``chat_template.json`` and
    ``processor_config.json``. There is always a default: without one in the files, another template takes its place.

    Args:
        files: Path to text of the template files.
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
    """Return name to text of the templates under ``chat_template``: one text, or named texts in a list or an object."""
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
    """Whether a file is litter of macOS, Windows or a network drive, by its name or a folder of its path."""
    *folders, name = path.lower().split("/")
    return (
        name in _LITTER_NAMES
        or name.startswith(_LITTER_BEGINNINGS)
        or name.endswith(_LITTER_ENDINGS)
        or any(folder in _LITTER_FOLDERS or folder.startswith("._") for folder in folders)
    )


def has_default_template(templates: object) -> TypeGuard[str | dict[str, str]]:
    """Whether a library's chat templates, a text or texts by name, have a default for conversations without tools."""
    if isinstance(templates, str):
        return bool(templates.strip())
    return isinstance(templates, dict) and DEFAULT_TEMPLATE in templates


_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder_config")


def text_section(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return a config merged with its section about the language model, which multimodal models have."""
    for name in _TEXT_SECTIONS:
        nested = config.get(name)
        if isinstance(nested, Mapping) and nested:
            own = {key: value for key, value in config.items() if key not in _TEXT_SECTIONS}
            return {**own, **text_section(nested)}
    return config


def own_text_section(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return a config's innermost section about the language model alone; the config itself without such a section."""
    for name in _TEXT_SECTIONS:
        nested = config.get(name)
        if isinstance(nested, Mapping) and nested:
            return own_text_section(nested)
    return config


def adapter_base(config: Mapping[str, object]) -> str | None:
    """Return the base model that an adapter's config names; None where it names none."""
    base = config.get("model", config.get("base_model_name_or_path"))
    return base if isinstance(base, str) and base.strip() else None
