"""``POST /api/pull``, if the operator allows it."""

import threading
from collections.abc import Callable, Mapping

import attrs
import falcon

from mlxk.application.ports.system import Confirmation, Progress
from mlxk.application.use_cases.pull_model import PullRequest
from mlxk.domain.errors import (
    InternalError,
    InterruptedRunError,
    MlxkError,
    QueueFullError,
    ServerShutdownError,
)
from mlxk.domain.hub import DownloadPlan, RemoteFile
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.errors import raised_at
from mlxk.entrypoints.http.generation.renderer import QueuedBody, ResponseBody
from mlxk.entrypoints.http.ollama.names import ModelFields, parts_of
from mlxk.entrypoints.http.ollama.renderer import LINES_HEADERS, error_document, line, require_changes
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import Unsupported
from mlxk.entrypoints.http.resources import send_json
from mlxk.entrypoints.http.server.channel import ENVIRON_DETACH

MAX_PULLS = 4
"""Most downloads at the same time."""

UNSUPPORTED: Mapping[str, Unsupported] = {
    "insecure": Unsupported("the certificate of the hub is always checked", (False,)),
}
"""Documented fields of ``/api/pull`` that are not supported."""

DIGEST_DIGITS = 12
"""Digits of a digest in ``status``."""


@attrs.frozen(kw_only=True)
class PullBody(ModelFields):
    """The body of ``/api/pull``."""

    stream: bool | None = None
    """Absent means yes."""


class NoTerminal(Confirmation):
    """Confirms nothing: there is no one to ask."""

    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        """Return None."""
        return None


def on_hub(name: str) -> str:
    """Return the reference of a model on the hub, with the tag as its revision."""
    base, tag = parts_of(name)
    return base if tag is None else f"{base}@{tag}"


class PullProgress(Progress):
    """Reports the progress of each file as status documents.

    Args:
        report: Receives a status; returns False once the client has disconnected.
        require_open: Raises if the server is shutting down.
    """

    def __init__(
        self,
        report: Callable[[Mapping[str, object]], bool],
        require_open: Callable[[], None],
    ) -> None:
        self._report = report
        self._require_open = require_open
        self._files: Mapping[str, RemoteFile] = {}
        self._sizes: Mapping[str, int] = {}
        self._done: Mapping[str, int] = {}

    def planned(self, plan: DownloadPlan) -> None:
        """Store the files of the download, for their digests."""
        self._files = {file.path: file for file in plan.files}

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        """Report each file once, without a count of bytes."""
        self._sizes, self._done = sizes, {}
        for path in sizes:
            self._send(path, {})

    def advance(self, done: Mapping[str, int]) -> None:
        """Report the files with new bytes.

        Raises:
            InterruptedRunError: The client has disconnected.
            ServerShutdownError: The server is shutting down.
        """
        self._require_open()
        changed = {path: count for path, count in done.items() if count != self._done.get(path, 0)}
        self._done = dict(done)
        for path, count in changed.items():
            self._send(path, {"completed": count})

    def end(self) -> None:
        """Report the check of the digests, if all files are complete."""
        if all(self._done.get(path, 0) >= size for path, size in self._sizes.items()):
            self._send_status({"status": "verifying sha256 digest"})

    def note(self, message: str) -> None:
        """Report a sentence."""
        self._send_status({"status": message})

    def _send(self, path: str, progress: Mapping[str, object]) -> None:
        file = self._files.get(path)
        status = {"status": f"pulling {path}"}
        if file is not None:
            kind = "sha256" if file.sha256 else "sha1"
            status = {"status": f"pulling {file.digest[:DIGEST_DIGITS]}", "digest": f"{kind}:{file.digest}"}
        self._send_status({**status, "total": self._sizes.get(path, 0), **progress})

    def _send_status(self, status: Mapping[str, object]) -> None:
        if not self._report(status):
            raise InterruptedRunError("the client has gone; what arrived is kept")


class Pull:
    """Downloads a model."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(PullBody, (), UNSUPPORTED)
        self._services = server.services
        self._lifecycle = server.lifecycle
        self._allowed = server.settings.allow_model_changes
        self._slots = threading.BoundedSemaphore(MAX_PULLS)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Download the model, and report the progress."""
        require_changes(self._allowed)
        body = self._reader.read(request, response)
        reference = on_hub(body.required_name)
        self._lifecycle.require_open()
        if not self._slots.acquire(blocking=False):
            raise QueueFullError(f"{MAX_PULLS} models are being pulled; wait until one of them is done")
        if body.stream is not False:
            self._stream(request, response, reference)
            return
        try:
            self._pull(reference, lambda _: True)
        finally:
            self._slots.release()
        send_json(response, {"status": "success"})

    def _stream(self, request: falcon.Request, response: falcon.Response, reference: str) -> None:
        for name, value in LINES_HEADERS.items():
            response.set_header(name, value)
        detach: Callable[[Callable[[], None]], ResponseBody] | None = request.env.get(ENVIRON_DETACH)
        body: ResponseBody

        def start() -> None:
            threading.Thread(target=self._write, args=(reference, body), name="mlxk-pull", daemon=True).start()

        if detach is None:
            response.stream = body = QueuedBody(lambda: None)
            start()
        else:
            response.stream, body = iter(()), detach(start)

    def _write(self, reference: str, body: ResponseBody) -> None:
        """Pull, and write each status as a line; the last line is the success or the error."""
        try:
            self._pull(reference, lambda status: body.write(line(status)))
            body.write(line({"status": "success"}))
        except InterruptedRunError:
            self._services.log.info("a pull was interrupted: its client has gone")
        except MlxkError as error:
            self._services.log.warning("a pull failed", error=error.code)
            body.write(line(error_document(error)))
        except Exception as fault:  # noqa: BLE001 - the client would wait forever
            where = raised_at(fault.__traceback__)
            self._services.log.error("a pull failed unexpectedly", error=type(fault).__name__, where=where)
            internal = InternalError("The server met an unexpected condition; its log says more.")
            body.write(line(error_document(internal)))
        finally:
            self._slots.release()
            body.finish()

    def _pull(self, reference: str, report: Callable[[Mapping[str, object]], bool]) -> None:
        """Pull a model, or complete a partial or damaged one.

        Raises:
            MlxkError: See ``PullModel``.
        """
        pull = self._services.pull()
        report({"status": "pulling manifest"})
        progress = PullProgress(report, self._require_open)
        pull(PullRequest(reference, force_resume=True, planned=progress.planned), progress, NoTerminal())
        report({"status": "writing manifest"})
        self._services.catalogue.forget()

    def _require_open(self) -> None:
        if self._lifecycle.aborted:
            raise ServerShutdownError("The server is shutting down; what arrived is kept.")


class NoProgress(Progress):
    """Reports nothing."""

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        """Do nothing."""

    def advance(self, done: Mapping[str, int]) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""
