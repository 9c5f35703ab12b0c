"""``POST /v1/embeddings`` when another server makes the vectors: bodies go there, and come back, as they are."""

import http.client
from urllib.parse import urlsplit

import falcon

from mlxk.domain.errors import NetworkError
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, ServerLifecycle

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 120.0

MAX_ANSWER_BYTES = 256 * 1024 * 1024


class EmbeddingsProxy:
    """Hands requests on.

    Args:
        address: Of the other server, such as ``http://127.0.0.1:8001``; a path after it is kept.
        life: Says whether the server takes work.
        admission: Counts what is in progress.
    """

    def __init__(self, address: str, life: ServerLifecycle, admission: ConcurrencyLimit) -> None:
        self._address = urlsplit(address)
        self._life = life
        self._admission = admission

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Ask the other server."""
        self._life.require_open()
        leave = self._admission.enter(1)
        try:
            status, kind, data = self._ask(request.bounded_stream.read(), request.content_type or "application/json")
        except TimeoutError as error:
            raise NetworkError("The embed backend did not answer in time.") from error
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"Embed backend unreachable ({type(error).__name__}).") from error
        finally:
            leave()
        response.status = falcon.code_to_http_status(status)
        response.content_type, response.data = kind, data

    def _ask(self, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        secure = self._address.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(self._address.hostname or "", self._address.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(ANSWER_SECONDS)
            path = self._address.path.rstrip("/").removesuffix("/v1")
            connection.request("POST", f"{path}/v1/embeddings", body, {"Content-Type": content_type})
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
            if len(data) > MAX_ANSWER_BYTES:
                raise NetworkError("The embed backend's answer is too large.")
            return answer.status, answer.getheader("Content-Type") or "application/json", data
        finally:
            connection.close()
