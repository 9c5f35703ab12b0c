"""Answers of the loopback hub to those who read: models, trees, files."""

import re
import time
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, urlsplit

from hub.exchange import Exchange, RefusalError
from hub.storage import Entry, Repository, Tree, git_sha1


def load(
    exchange: Exchange, kind: str | None, repo_id: str, revision: str | None = None, *, write: bool = False
) -> tuple[Repository, str, Tree]:
    """Return a repository, the commit a revision means, and its files."""
    hub = exchange.hub
    user = hub.user(exchange.call.headers)
    repository = hub.admit((kind or "models").rstrip("/"), repo_id, user, write=write)
    sha = find_commit(repository, revision or "main")
    return repository, sha, repository.commits[sha].files


def find_commit(repository: Repository, revision: str) -> str:
    """Return the commit that a branch or a sha means."""
    sha = repository.branches.get(revision) or (revision if revision in repository.commits else None)
    if sha is None:
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return sha


def info(exchange: Exchange, kind: str, repo_id: str, revision: str | None = None) -> None:
    """Describe a repository at a revision."""
    repository, sha, files = load(exchange, kind, repo_id, revision)
    with_blobs = "blobs" in exchange.call.query

    def blobs(entry: Entry) -> dict[str, object]:
        return {"size": entry.size, "blobId": entry.blob_id, **_lfs(entry, "sha256")} if with_blobs else {}

    exchange.json(
        {
            "_id": "0" * 24,
            "id": exchange.hub.spellings.get(repo_id, repo_id),
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": sha,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": repository.disabled,
            "tags": list(repository.tags),
            "library_name": repository.library_name,
            "downloads": repository.downloads,
            "likes": 0,
            "createdAt": _utc(0),
            "lastModified": _utc(repository.commits[sha].time),
            "siblings": [{"rfilename": path, **blobs(entry)} for path, entry in files.items()],
        }
    )


def tree(exchange: Exchange, kind: str, repo_id: str, revision: str, folder: str | None = None) -> None:
    """List the files of a revision, page by page."""
    files = load(exchange, kind, repo_id, revision)[2]
    inside, query = f"{folder}/" if folder else "", exchange.call.query
    items: dict[str, Mapping[str, object]] = {}
    for path, entry in sorted(files.items()):
        if not path.startswith(inside):
            continue
        for found in re.finditer("/", path):
            if found.start() >= len(inside):
                name = path[: found.start()]
                items.setdefault(name, {"type": "directory", "oid": git_sha1(name.encode()), "size": 0, "path": name})
        items[path] = _item(path, entry)
    if folder and not items:
        raise RefusalError(404, f"{folder} does not exist", "EntryNotFound")
    recursive = query.get("recursive") == "true"
    rows = [item for path, item in items.items() if recursive or "/" not in path[len(inside) :]]
    at, page = int(query.get("cursor", 0)), exchange.hub.page
    recursion = query.get("recursive", "false")
    following = f"{exchange.hub.linked_url}{quote(exchange.call.path)}?recursive={recursion}&cursor={at + page}"
    exchange.json(rows[at : at + page], headers={"Link": f'<{following}>; rel="next"'} if at + page < len(rows) else {})


def paths_info(exchange: Exchange, kind: str, repo_id: str, revision: str) -> None:
    """Describe the files asked about."""
    files = load(exchange, kind, repo_id, revision)[2]
    asked = parse_qs(exchange.call.body.decode()).get("paths", [])
    exchange.json([_item(path, files[path]) for path in asked if path in files])


def refs(exchange: Exchange, kind: str, repo_id: str) -> None:
    """List the branches."""
    branches = load(exchange, kind, repo_id)[0].branches
    listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches.items()]
    exchange.json({"branches": listed, "tags": [], "converts": [], "pullRequests": []})


def commits(exchange: Exchange, kind: str, repo_id: str, revision: str) -> None:
    """List the commits of a revision, the newest first."""
    repository, sha, _ = load(exchange, kind, repo_id, revision)
    listed: list[dict[str, object]] = []
    at: str | None = sha
    while at:
        made = repository.commits[at]
        authors = [{"user": "me"}]
        listed.append({"id": at, "title": made.title, "message": "", "authors": authors, "date": _utc(made.time)})
        at = made.parent
    exchange.json(listed)


def resolve(exchange: Exchange, kind: str | None, repo_id: str, revision: str, path: str) -> None:
    """Send a regular file; for a large one, send its reader to the other origin."""
    hub = exchange.hub
    repository, sha, files = load(exchange, kind, repo_id, revision)
    hub.admit_content(repository, hub.user(exchange.call.headers))
    entry = files.get(path)
    if entry is None:
        raise RefusalError(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": sha})
    if not entry.pointer_size:
        exchange.file(str(hub.storage.path(entry.key)), {"ETag": f'"{entry.key}"', "X-Repo-Commit": sha})
        return
    exchange.empty(
        302,
        {
            "Location": f"{hub.cdn}/cdn/{entry.key}?Signature=x",
            "X-Linked-Size": str(entry.size),
            "X-Linked-Etag": f'"{entry.key}"',
            "ETag": f'"{entry.key[:32]}"',
            "X-Repo-Commit": sha,
        },
    )


def cdn(exchange: Exchange, key: str) -> None:
    """Send a large file; the token must not have come along."""
    if "authorization" in exchange.call.headers:
        raise RefusalError(400, "Only one auth mechanism allowed")
    exchange.file(str(exchange.hub.storage.path(key)), {"ETag": f'"{key[:32]}"'})


def whoami(exchange: Exchange) -> None:
    """Say who the token belongs to."""
    user = exchange.hub.user(exchange.call.headers)
    if not user:
        raise RefusalError(401, "Invalid username or password.")
    token = {"type": "access_token", "accessToken": {"displayName": "t", "role": user.role}}
    exchange.json({"type": "user", "name": user.name, "orgs": [], "auth": token})


def harnesses(exchange: Exchange) -> None:
    """Answer a question of the client's telemetry."""
    exchange.json({"standardEnvVars": [], "harnesses": {}})


def _lfs(entry: Entry, name: str) -> dict[str, object]:
    if not entry.pointer_size:
        return {}
    return {"lfs": {name: entry.key, "size": entry.size, "pointerSize": entry.pointer_size}}


def _item(path: str, entry: Entry) -> dict[str, object]:
    return {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": path, **_lfs(entry, "oid")}


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(moment))


def search(exchange: Exchange) -> None:
    """List the models that a search finds, with the fields asked for."""
    hub, query = exchange.hub, exchange.call.query
    user, words = hub.user(exchange.call.headers), query.get("search", "").lower().split()
    expanded = parse_qs(urlsplit(exchange.path).query).get("expand[]", [])
    found = [
        repository
        for repository in hub.repositories.values()
        if all(word in repository.id.lower() for word in words)
        and query.get("filter", "") in {"", *repository.tags}
        and hub.is_visible(repository, user)
    ]
    if query.get("sort") == "downloads":
        found.sort(key=lambda repository: -repository.downloads)
    listed = [_listed(repository, expanded) for repository in found[: int(query.get("limit", 1000))]]
    exchange.json(listed if hub.listing is None else hub.listing)


def _listed(repository: Repository, expanded: list[str]) -> dict[str, object]:
    facts: dict[str, object] = {
        "downloads": repository.downloads,
        "gated": repository.gated,
        "library_name": repository.library_name,
        "tags": list(repository.tags),
    }
    if repository.parameters is not None:
        total = sum(repository.parameters.values())
        facts["safetensors"] = {"parameters": dict(repository.parameters), "total": total}
    return {"_id": "0" * 24, "id": repository.id, **{key: facts[key] for key in expanded if key in facts}}
