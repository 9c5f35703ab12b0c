"""What every address that can be read has in common."""

import json
from abc import abstractmethod

import falcon


class Readable:
    """An address that answers GET, and HEAD as GET without the body."""

    @abstractmethod
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer."""

    def on_head(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer without the body; Falcon leaves it out."""
        self.on_get(request, response)


def send_json(response: falcon.Response, document: object) -> None:
    """Answer with JSON."""
    response.content_type = "application/json"
    response.data = json.dumps(document, ensure_ascii=False).encode()
