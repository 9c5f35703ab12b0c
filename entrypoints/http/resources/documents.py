"""``GET /openapi.json`` and ``GET /docs``: the API description, and a page about it."""

from importlib import resources

import falcon

from mlxk.entrypoints.http.resources.readable import Readable

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mlxk</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 3rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; background: #8881; border-radius: 4px; padding: .1em .3em; }
pre { padding: 1em; overflow: auto; } td { padding: .2em 1em .2em 0; vertical-align: top; }
</style>
<h1>mlxk</h1>
<p>An OpenAI-compatible server. Point any client at <code id="base">/v1</code>; any API key will do
unless the operator set one. The whole contract: <a href="/openapi.json">openapi.json</a>.</p>
<pre>curl <span id="origin"></span>/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "demo", "messages": [{"role": "user", "content": "What is mlxk?"}]}'</pre>
<table id="routes"></table>
<script>
document.getElementById("base").textContent = location.origin + "/v1";
document.getElementById("origin").textContent = location.origin;
fetch("/openapi.json").then(answer => answer.json()).then(contract => {
  for (const [path, methods] of Object.entries(contract.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const row = document.getElementById("routes").insertRow();
      row.insertCell().append(Object.assign(document.createElement("code"),
        {textContent: method.toUpperCase() + " " + path}));
      row.insertCell().textContent = operation.summary || "";
    }
});
</script></html>
"""


class OpenApi(Readable):
    """The OpenAPI document of ``contracts``."""

    def __init__(self) -> None:
        self._document = resources.files("mlxk.contracts").joinpath("http", "v1", "openapi.json").read_bytes()

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Send it."""
        response.content_type = "application/json"
        response.data = self._document


class Docs(Readable):
    """A page with a first request and all paths."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Send it."""
        response.content_type = "text/html; charset=utf-8"
        response.set_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'")
        response.text = PAGE
