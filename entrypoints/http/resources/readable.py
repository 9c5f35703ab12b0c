"""What readable resources share: HEAD requests and JSON responses."""

import json
from abc import abstractmethod

import falcon


class Readable:
    """A resource with GET, and HEAD as GET without the body."""

    @abstractmethod
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Respond."""

    def on_head(self, request: falcon.Request, response: falcon.Response) -> None:
        """Respond as GET does; Falcon omits the body."""
        self.on_get(request, response)


def send_json(response: falcon.Response, document: object) -> None:
    """Set a JSON body."""
    response.content_type = "application/json"
    response.data = json.dumps(document, ensure_ascii=False).encode()
