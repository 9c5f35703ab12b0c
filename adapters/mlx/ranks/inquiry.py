"""Asking hosts about a model before it is spread over them; what they are asked is in ``follower.account``.

It runs the program of a rank on each host, started as ranks are, and does not import MLX.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlxk.adapters.mlx.ranks.launch import RankPlace, last_line, place_of
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.ranks import HostAccount, RankHost

_ANSWER_SECONDS = 900.0
"""Enough for reading a model of hundreds of gigabytes."""


def asked(
    module: str, orders: Mapping[str, Any], hosts: Sequence[RankHost], name: str, backends: Sequence[str]
) -> tuple[HostAccount, ...]:
    """Ask all hosts at once, and return what each says of a model.

    Args:
        module: The one that runs a rank.
        orders: What every rank is told beside.
        hosts: The first one is this machine.
        name: Of the model.
        backends: The libraries that can compute it, where that is known.
    """
    places = [place_of(rank, host, module) for rank, host in enumerate(hosts)]
    questions = [
        {**orders, "asked": {"name": name, "backends": list(backends), "divided": None if rank else len(hosts)}}
        for rank in range(len(hosts))
    ]
    with ThreadPoolExecutor(len(hosts)) as threads:
        return tuple(threads.map(_answer, places, questions))


def _answer(place: RankPlace, question: Mapping[str, Any]) -> HostAccount:
    told = json.dumps(question).encode() + b"\n"
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                place.command, input=told, stdout=subprocess.PIPE, stderr=errors, timeout=_ANSWER_SECONDS, check=False
            )
        except OSError as error:
            return HostAccount(problem=f"{place.command[0]} cannot be started: {error.strerror}")
        except subprocess.TimeoutExpired:
            return HostAccount(problem=f"it did not answer within {_ANSWER_SECONDS:g} seconds")
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        try:
            return _read(json.loads(lines[-1]))  # a shell may have greeted before
        except (LookupError, ValueError, TypeError, AttributeError):
            return HostAccount(problem=last_line(errors) or f"it ended with status {done.returncode} and no answer")


def _read(said: dict[str, Any]) -> HostAccount:
    reading = said.pop("reading")
    return HostAccount(None if reading is None else MemoryReading(*reading), **said)
