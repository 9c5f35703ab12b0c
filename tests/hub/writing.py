"""Answers of the loopback hub to those who write: repositories, branches, uploads, commits."""

import base64
import fnmatch
import hashlib
import json

from hub.exchange import Exchange, RefusalError
from hub.reading import find_commit, load
from hub.storage import Tree, commit, is_lfs, lfs_entry


def create(exchange: Exchange) -> None:
    """Create a repository in the namespace of the token."""
    hub = exchange.hub
    user, asked = hub.user(exchange.call.headers), json.loads(exchange.call.body)
    owner = asked.get("organization") or (user.name if user else "?")
    repo_id = f"{owner}/{asked['name']}"
    if not user or user.name != owner or user.role != "write":
        message = f'You don\'t have the rights to create a model under the namespace "{owner}"'
        raise RefusalError(403 if user else 401, message)
    url = f"{hub.url}/{repo_id}"
    if ("models", repo_id) in hub.repositories:
        raise RefusalError(409, f"You already created this model repo: {repo_id}", body={"url": url})
    hub.add(repo_id, private=asked.get("visibility") == "private")
    exchange.json({"url": url, "name": repo_id})


def branch(exchange: Exchange, kind: str, repo_id: str, name: str) -> None:
    """Create a branch."""
    repository = load(exchange, kind, repo_id, write=True)[0]
    if name in repository.branches:
        raise RefusalError(409, "Reference already exists")
    start = json.loads(exchange.call.body or b"{}").get("startingPoint", "main")
    repository.branches[name] = find_commit(repository, start)
    exchange.json({})


def preupload(exchange: Exchange, kind: str, repo_id: str, revision: str) -> None:
    """Say of every file how it is to be uploaded, and what is here under its name."""
    files = load(exchange, kind, repo_id, revision, write=True)[2]
    asked = json.loads(exchange.call.body)
    lines = (asked.get("gitIgnore") or "").split("\n")
    ignored = [f"{line}*" if line.endswith("/") else line for line in lines if line and not line.startswith("#")]

    def plan(path: str, size: int, sample: str) -> dict[str, object]:
        mode = "lfs" if is_lfs(path, size, base64.b64decode(sample)) else "regular"
        known = {"oid": files[path].key} if path in files else {}
        return {
            "path": path,
            "shouldIgnore": any(fnmatch.fnmatch(path, pattern) for pattern in ignored),
            "uploadMode": mode,
            **known,
        }

    exchange.json({"files": [plan(item["path"], item["size"], item["sample"]) for item in asked["files"]]})


def lfs_batch(exchange: Exchange, kind: str | None, repo_id: str) -> None:
    """Say where to put the large files that are not here yet."""
    hub = exchange.hub
    load(exchange, kind, repo_id, write=True)
    answers = []
    for asked in json.loads(exchange.call.body)["objects"]:
        key, size = asked["oid"], asked["size"]
        if hub.storage.has(key):
            answers.append(asked)
            continue
        upload: dict[str, object] = {"href": f"{hub.cdn}/put/{key}"}
        if hub.multipart_at and size >= hub.multipart_at:
            count = -(-size // hub.part_size)
            parts = {f"{number + 1:05d}": f"{hub.cdn}/put/{key}.{number + 1}" for number in range(count)}
            upload = {"href": f"{hub.url}/complete/{key}", "header": {"chunk_size": str(hub.part_size), **parts}}
        answers.append({**asked, "actions": {"upload": upload, "verify": {"href": f"{hub.url}/verify"}}})
    exchange.json({"transfer": "basic", "objects": answers})


def put(exchange: Exchange, key: str, part: str | None = None) -> None:
    """Receive a large file, or a part of one."""
    content = exchange.call.body
    if part:
        exchange.hub.storage.put(f"{key}.{part}", content)
    else:
        _accept(exchange, key, content)
    exchange.empty(200, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})


def complete(exchange: Exchange, key: str) -> None:
    """Join the parts of a large file."""
    storage = exchange.hub.storage
    parts = json.loads(exchange.call.body)["parts"]
    _accept(exchange, key, b"".join(storage.path(f"{key}.{part['partNumber']}").read_bytes() for part in parts))
    exchange.json({})


def verify(exchange: Exchange) -> None:
    """Confirm the size of a large file."""
    asked = json.loads(exchange.call.body)
    if exchange.hub.storage.path(asked["oid"]).stat().st_size != asked["size"]:
        raise RefusalError(422, "object of another size")
    exchange.json({})


def validate_card(exchange: Exchange) -> None:
    """Find nothing wrong with a model card."""
    exchange.json({"errors": [], "warnings": []})


def post_commit(exchange: Exchange, kind: str, repo_id: str, revision: str) -> None:
    """Make one commit of additions and deletions."""
    hub = exchange.hub
    with hub.lock:
        repository, head, files = load(exchange, kind, repo_id, revision, write=True)
        tree, title = dict(files), ""
        for line in filter(None, exchange.call.body.split(b"\n")):
            item = json.loads(line)
            if item["key"] == "header":
                title = item["value"].get("summary", "")
                if not head.startswith(item["value"].get("parentCommit", "")):
                    raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            else:
                _apply(exchange, tree, item["key"], item["value"])
        sha = commit(repository, tree, revision, title)
    exchange.json({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo_id}/commit/{sha}"})


def _apply(exchange: Exchange, tree: Tree, key: str, value: dict[str, str]) -> None:
    storage, path = exchange.hub.storage, value["path"]
    if key == "file":
        tree[path] = storage.add_regular(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if not storage.has(value["oid"]):
            raise RefusalError(400, "an LFS pointer pointed to a file that does not exist")
        tree[path] = lfs_entry(value["oid"], int(value["size"]))
    elif key == "deletedFile" and not tree.pop(path, None):
        raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")


def _accept(exchange: Exchange, key: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != key:
        raise RefusalError(400, "checksum mismatch")
    exchange.hub.storage.put(key, content)
