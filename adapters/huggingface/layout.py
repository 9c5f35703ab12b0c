"""Where things are in the hub cache, for those who write to it.

models--org--name/blobs/<digest>                     a content, whole
                 /blobs/<digest>.mlxk.incomplete     one that is arriving; the name is constant, so that any
                                                     later run finds it, and other clients know what it is
                 /snapshots/<commit>/<path>          links to blobs
                 /.staging/<commit>/<path>           a snapshot that is being made, at the same depth
                 /refs/<branch>  /trees/<commit>.json
.locks/models--org--name/<digest>.lock               shared with every other client of the cache
                        /mlxk.lock                   ours: one process at a time changes a model
"""

import os

import attrs

PARTIAL_SUFFIX = ".mlxk.incomplete"
MODEL_LOCK = "mlxk.lock"
STAGING = ".staging"

_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of models; backups may leave it out.\n"


@attrs.frozen
class ModelFolder:
    """One model's part of the cache."""

    root: str
    """The ``hub`` directory, absolute."""
    name: str
    """``org/name``, checked."""

    @property
    def folder_name(self) -> str:
        """What the model's directory is called."""
        return "models--" + self.name.replace("/", "--")

    @property
    def directory(self) -> str:
        """The model's directory."""
        return f"{self.root}/{self.folder_name}"

    @property
    def blobs(self) -> str:
        """The directory of contents."""
        return f"{self.directory}/blobs"

    @property
    def snapshots(self) -> str:
        """The directory of revisions."""
        return f"{self.directory}/snapshots"

    @property
    def locks(self) -> str:
        """The directory of locks."""
        return f"{self.root}/.locks/{self.folder_name}"

    def blob(self, digest: str) -> str:
        """Where a whole content is."""
        return f"{self.blobs}/{digest}"

    def partial(self, digest: str) -> str:
        """Where an arriving content is."""
        return f"{self.blobs}/{digest}{PARTIAL_SUFFIX}"

    def lock(self, digest: str) -> str:
        """The lock that every client takes before it writes a content."""
        return f"{self.locks}/{digest}.lock"

    def create(self) -> None:
        """Make the directories, empty ones included: other clients take a model without them for a damaged one.

        Raises:
            OSError: The cache cannot be written to.
        """
        for directory in (self.blobs, self.snapshots, self.locks):
            os.makedirs(directory, exist_ok=True)
        tag = f"{self.root}/CACHEDIR.TAG"
        if not os.path.exists(tag):
            with open(tag, "wb") as file:
                file.write(_CACHE_TAG)
