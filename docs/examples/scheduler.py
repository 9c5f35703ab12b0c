"""Answers a prompt on the server that suits it: ``python scheduler.py MODEL PROMPT ADDRESS …``.

Of the servers that are ready and have the model, a conversation goes to the one that its first message names, which
has its beginning in memory, unless another has much less to do. A key is read from MLXK2_API_KEY.
"""

import hashlib
import http.client
import json
import os
import re
import sys
from urllib import error, request

HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('MLXK2_API_KEY', 'none')}"}
MORE = 4  # requests that a server may have more than the idlest one before a conversation leaves it
BROKEN = (OSError, http.client.HTTPException)


def ask(address: str, path: str, body: object = None, seconds: float = 2) -> str:
    """Return what a server answers."""
    data = None if body is None else json.dumps(body).encode()
    with request.urlopen(request.Request(address + path, data, HEADERS), timeout=seconds) as response:
        return str(response.read(), "utf-8")


def load(address: str, model: str) -> float | None:
    """Return the requests that a server computes or keeps waiting, or None where it cannot take this one."""
    try:
        ask(address, "/readyz")
        names = {each["id"] for each in json.loads(ask(address, "/v1/models"))["data"]}
        gauges = re.findall(r"(?m)^mlxk_answers_(?:running|waiting) (\S+)$", ask(address, "/metrics"))
        return sum(map(float, gauges)) if model in names else None
    except BROKEN:  # it does not answer, drains, loads, has a full queue, or wants another key
        return None


def ranked(addresses: list[str], model: str, beginning: str) -> list[str]:
    """Return the servers to try, the best one first."""
    loads = {address: busy for address in addresses if (busy := load(address, model)) is not None}
    home = max(loads, key=lambda address: hashlib.sha256((address + beginning).encode()).digest(), default="")
    stays = loads.get(home, 0) <= min(loads.values(), default=0) + MORE
    return sorted(loads, key=lambda address: (address != home or not stays, loads[address]))


def answer(addresses: list[str], model: str, messages: list[dict[str, str]]) -> tuple[str, str]:
    """Return the server that answered, and its text; one that refuses for now or breaks off is passed over."""
    for address in ranked(addresses, model, messages[0]["content"]):
        try:
            response = json.loads(ask(address, "/v1/chat/completions", {"model": model, "messages": messages}, 600))
            return address, response["choices"][0]["message"]["content"]
        except BROKEN as fault:
            if isinstance(fault, error.HTTPError) and fault.code not in (429, 503):
                raise SystemExit(f"{address} refuses: {fault.read().decode()}") from None
            print(f"{address}: {fault}", file=sys.stderr)
    raise SystemExit(f"no server can answer for {model}")


if __name__ == "__main__":
    print(*answer(sys.argv[3:], sys.argv[1], [{"role": "user", "content": sys.argv[2]}]), sep="\n")
