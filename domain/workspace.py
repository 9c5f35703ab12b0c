"""A workspace: an editable copy of a model in a plain directory.

Any directory with a ``config.json`` is one; a *managed* workspace also carries a sentinel file that records where it
came from and the hash of its content. Reading and writing that file is the workspace store's work.
"""

import datetime

import attrs

SENTINEL_NAME = ".mlxk_workspace.json"

_OTHER_DIRECTORIES = (".hf_cache/", ".git/")


@attrs.frozen
class Workspace:
    """Provenance and state of one workspace."""

    managed: bool
    source_repo: str | None = None
    """The repository it was cloned or converted from."""
    source_revision: str | None = None
    operation: str | None = None
    """The verb that made it: clone or convert."""
    created: datetime.datetime | None = None
    content_hash: str | None = None
    """``sha256:`` and 64 hexadecimal digits, as recorded."""
    hash_modified: datetime.datetime | None = None
    """When the hash was last recorded."""
    clean: bool | None = None
    """Whether the content still has the recorded hash; None when there is none to compare with."""


def is_part_of_model(path: str) -> bool:
    """Whether a file is the model's own, and not kept beside it by us, the hub's client or git.

    Args:
        path: Relative to the workspace, with ``/`` between parts.
    """
    return path != SENTINEL_NAME and not path.startswith(_OTHER_DIRECTORIES)
