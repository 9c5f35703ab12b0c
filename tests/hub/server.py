"""A loopback Hugging Face Hub: the real hub client runs against it, nothing is patched.

    with LoopbackHub(tmp_path) as hub:                      # 127.0.0.1, two free ports: the hub and its "CDN"
        hub.add("org/m", {"config.json": b"{}", "model.safetensors": weights}, gated="manual")
        hub.fault(r"^/cdn/", drop_after=1000, reset=True)   # the next matching request is cut after 1000 bytes
        hub.calls(r"^/cdn/")                                # [Call(method, path, status, sent, range, …)]

The client compares scheme, host and port, so large files come from a foreign origin as they do in production, and that
origin refuses a request that carries the token. As a program it serves a folder of repositories:

    python server.py FOLDER         # prints its address; FOLDER/<org>/<name>/… are the files
"""

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import attrs

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hub import reading, writing
from hub.exchange import NO_FAULT, Call, Exchange, Fault, RefusalError
from hub.storage import GIT_ATTRIBUTES, Repository, Storage, commit


@attrs.frozen
class User:
    """Whom a token belongs to."""

    name: str
    role: str
    """"read" or "write"."""


USERS = {"hf_write": User("me", "write"), "hf_read": User("me", "read"), "hf_other": User("other", "write")}

_API = r"/api/(models)/([^/]+(?:/[^/]+)?)"
_FILES = r"/()([^/]+(?:/[^/]+)?)"
_REVISION = "/([^/]+)"
_GET, _POST = ("GET", "HEAD"), ("POST",)

ROUTES: tuple[tuple[tuple[str, ...], str, Callable[..., None]], ...] = (
    (_GET, _API + "/tree" + _REVISION + "(?:/(.+))?", reading.tree),
    (_GET, _API + "/refs", reading.refs),
    (_GET, _API + "/commits" + _REVISION, reading.commits),
    (_GET, _API + "/revision" + _REVISION, reading.info),
    (_GET, _API, reading.info),
    (_GET, "/api/models", reading.search),
    (_POST, _API + "/paths-info" + _REVISION, reading.paths_info),
    (_POST, _API + "/preupload" + _REVISION, writing.preupload),
    (_POST, _API + "/commit" + _REVISION, writing.post_commit),
    (_POST, _API + "/branch" + _REVISION, writing.branch),
    (_POST, "/api/repos/create", writing.create),
    (_GET, "/api/whoami-v2", reading.whoami),
    (_GET, "/api/agent-harnesses", reading.harnesses),
    (_POST, "/api/validate-yaml", writing.validate_card),
    (_POST, _FILES + r"\.git/info/lfs/objects/batch", writing.lfs_batch),
    (("PUT",), r"/put/([0-9a-f]+)(?:\.(\d+))?", writing.put),
    (_POST, "/complete/([0-9a-f]+)", writing.complete),
    (_POST, "/verify", writing.verify),
    (_GET, "/cdn/([0-9a-f]+)", reading.cdn),
    (_GET, _FILES + "/resolve" + _REVISION + "/(.+)", reading.resolve),
)


class HubServer(ThreadingHTTPServer):
    """One origin of the hub."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: "LoopbackHub", origin: str) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.hub, self.origin = hub, origin
        self._live: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        self._live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        self._live.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error here."""

    def stop(self) -> None:
        """Stop serving and cut connections that are kept alive: the hub is really down."""
        self.shutdown()
        self.server_close()
        for connection in tuple(self._live):
            with contextlib.suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)


class LoopbackHub:
    """A hub on this machine, for the length of a ``with`` block.

    Args:
        root: Where the contents of files are kept.
        page: Files a page of a listing.
        multipart_at: Bytes from which a large file is uploaded in parts; None means never.
        part_size: Bytes a part.
        send_buffer: Bytes the kernel may hold unsent a connection; None leaves that to the kernel.
    """

    def __init__(
        self,
        root: Path,
        page: int = 1000,
        multipart_at: int | None = None,
        part_size: int = 5_000_000,
        send_buffer: int | None = None,
    ) -> None:
        self.storage = Storage(root / "hub-contents")
        self.page, self.multipart_at, self.part_size, self.send_buffer = page, multipart_at, part_size, send_buffer
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._faults: list[Fault] = []
        self._calls: list[Call] = []
        self._acts: list[tuple[str, Callable[[], object]]] = []
        self._servers = [HubServer(self, origin) for origin in ("hub", "cdn")]
        self.spellings: dict[str, str] = {}
        """Names in another case of letters, and how the hub spells them."""
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self.listing: object = None
        """What a search answers instead of the models that it finds."""
        self.linked_url = self.url
        """The address in links to further pages, which a mirror may pass on as they are."""

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()
        for server in self._servers:
            server.stop()

    def add(self, repo_id: str, files: Mapping[str, bytes] | None = None, **options: Any) -> Repository:
        """Add a repository with one commit, or two when it has files; options are fields of ``Repository``."""
        repository = Repository(repo_id, **options)
        self.repositories[repository.kind, repo_id] = repository
        commit(repository, {".gitattributes": self.storage.add_regular(GIT_ATTRIBUTES)}, "main", "initial commit")
        if files:
            self.change(repository, files)
        return repository

    def change(
        self, repository: Repository, files: Mapping[str, bytes], branch: str = "main", title: str = "add files"
    ) -> str:
        """Add a commit that writes files to a branch, starting it from main when it is new; returns its sha."""
        tree = dict(repository.files(branch if branch in repository.branches else "main"))
        tree |= {path: self.storage.add(path, content) for path, content in files.items()}
        return commit(repository, tree, branch, title)

    def contents(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """Return the content of every file of a repository."""
        files = self.repositories["models", repo_id].files(branch)
        return {path: self.storage.path(entry.key).read_bytes() for path, entry in files.items()}

    def fault(self, pattern: str, **options: Any) -> Fault:
        """Let something go wrong with requests whose path the pattern finds; options are fields of ``Fault``."""
        self._faults.append(Fault(pattern, **options))
        return self._faults[-1]

    def on_call(self, pattern: str, act: Callable[[], object]) -> None:
        """Let something else happen on the hub when the next request that the pattern finds arrives."""
        self._acts.append((pattern, act))

    def lose_answer(self, pattern: str) -> None:
        """Do what the next request that the pattern finds asks for, and answer that the hub is not well."""
        self.fault(pattern, loses_answer=True)

    def heal(self) -> None:
        """Take back all faults."""
        self._faults.clear()

    def calls(self, pattern: str = "", method: str | None = None) -> list[Call]:
        """Return the requests whose path the pattern finds, oldest first."""
        return [call for call in self._calls if re.search(pattern, call.path) and method in (None, call.method)]

    def forget(self) -> None:
        """Empty the log of calls."""
        self._calls.clear()

    def log(self, call: Call) -> Fault:
        """Take a request into the log and return the fault that is to hit it."""
        with self.lock:
            self._calls.append(call)
            for pattern, act in tuple(self._acts):
                if re.search(pattern, call.path):
                    self._acts.remove((pattern, act))
                    act()
            for fault in self._faults:
                if fault.times and re.search(fault.pattern, call.path) and fault.method in (None, call.method):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return NO_FAULT

    def route(self, exchange: Exchange, path: str) -> None:
        """Let the first route that fits answer; revisions come with their slashes escaped."""
        for methods, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and exchange.command in methods:
                answer(exchange, *(group and unquote(group) for group in found.groups()))
                return
        raise RefusalError(404, f"no route for {exchange.command} {path}")

    def user(self, headers: Mapping[str, str]) -> User | None:
        """Return whom the token belongs to; None without one."""
        authorization = headers.get("authorization")
        if not authorization:
            return None
        user = USERS.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return user

    def admit(self, kind: str, repo_id: str, user: User | None, *, write: bool) -> Repository:
        """Return a repository to a user who may see it; nobody else learns that a private one exists."""
        repository = self.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not _is_member(repository, user)):
            status, message = (404, "Repository not found") if user else (401, "Invalid username or password.")
            raise RefusalError(status, message, "RepoNotFound")
        if repository.disabled:
            raise RefusalError(403, "Access to this resource is disabled.")
        if write and not (user and _is_member(repository, user) and user.role == "write"):
            raise RefusalError(403 if user else 401, "you don't have the rights to write to this repository")
        return repository

    def is_visible(self, repository: Repository, user: User | None) -> bool:
        """Whether a listing shows a repository to a user."""
        return not repository.disabled and (not repository.private or _is_member(repository, user))

    def admit_content(self, repository: Repository, user: User | None) -> None:
        """Let a user read files; those of a gated repository are for members, its description is not."""
        if repository.gated and not _is_member(repository, user):
            message = f"Access to model {repository.id} is restricted and you are not in the authorized list."
            raise RefusalError(403 if user else 401, message, "GatedRepo")


def _is_member(repository: Repository, user: User | None) -> bool:
    return user is not None and (user.name == repository.id.split("/")[0] or user.name in repository.readers)


def _serve(folder: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch, LoopbackHub(Path(scratch)) as hub:
        for config in folder.glob("*/*"):
            files = {str(path.relative_to(config)): path.read_bytes() for path in config.rglob("*") if path.is_file()}
            hub.add(str(config.relative_to(folder)), files)
        sys.stdout.write(f"{hub.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
