"""A server of tools for tests, in plain JSON-RPC over standard input and output: ``python tool_server.py NAME``."""

import json
import os
import signal
import sys
import time

TOOLS = {
    "echo": {"text": {"type": "string"}},
    "environment": {},
    "huge": {},
    "escapes": {},
    "turns": {},
    "picture": {},
    "files": {},
    "structure": {},
    "lies": {},
    "fails": {},
    "dies": {},
    "sleeps": {},
}


def result(name: str, arguments: dict[str, object]) -> dict[str, object]:
    """Return the result of a call."""
    if name == "dies":
        print("out of cheese", file=sys.stderr)
        sys.exit(3)
    if name == "sleeps":
        time.sleep(60)
    texts = {
        "echo": f"@@ECHO@@ {arguments.get('text')} from {sys.argv[1]}",
        "environment": "@@ECHO@@ " + json.dumps(sorted(os.environ)),
        "huge": "@@ECHO@@" + "x" * 100_000,
        "escapes": "@@ECHO@@ \x1b]0;title\x07\x1b[31mred\x1b[0m\x1b[2J\x07 done",
        "turns": "@@ECHO@@ one\u2028two\u2029three\x85" + "\u061c\u200e\u200f\u202a\u202e\u2066\u2069four",
        "picture": "",
        "files": "",
        "structure": "",
        "lies": "",
        "fails": "@@ECHO@@ no such file",
    }
    content: list[dict[str, object]] = [{"type": "text", "text": texts[name]}]
    if name == "picture":
        content = [{"type": "image", "data": data, "mimeType": "image/png"} for data in ("AAAA", "A\nAA")]
    if name == "files":
        content = [
            {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "@@ECHO@@ text"}},
            {"type": "resource_link", "uri": "https://example.org/b.pdf", "name": "b"},
            {"type": "resource", "resource": {"uri": "file:///c.bin", "blob": "AAAA"}},
        ]
    if name == "structure":
        return {"content": [], "structuredContent": {"degrees": 21, "where": "Köln"}}
    if name == "lies":
        return {"content": "no list"}
    return {"content": content, "isError": name == "fails"}


def main() -> None:
    """Answer requests until the input ends."""
    if sys.argv[1] == "broken":
        print("cannot find my configuration", file=sys.stderr)
        sys.exit(1)
    if sys.argv[1] == "noisy":
        print("Listening on standard input \x1b[2J", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        method, answer = request.get("method"), {"jsonrpc": "2.0", "id": request["id"]}
        if method == "initialize":
            version = request["params"]["protocolVersion"]
            info = {"name": sys.argv[1], "version": "1"}
            answer["result"] = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        elif method == "tools/list":
            answer["result"] = {
                "tools": [
                    {
                        "name": name,
                        "description": f"{name} \x1b[31mof a test",
                        "inputSchema": {"type": "object", "properties": properties},
                    }
                    for name, properties in TOOLS.items()
                ]
            }
            if sys.argv[1] == "endless":
                time.sleep(0.3)
                answer["result"]["nextCursor"] = "more"
        elif method == "tools/call":
            answer["result"] = result(request["params"]["name"], request["params"].get("arguments") or {})
        else:
            answer["error"] = {"code": -32601, "message": "no such method"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "chatty":
        print("usage: chatty [FILE]", flush=True)
        time.sleep(60)
    main()
    if sys.argv[1] == "stays":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)
