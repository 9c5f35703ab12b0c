"""A rank other than rank 0: it joins the group, loads its share, and executes the steps that rank 0 sends.

A separate thread receives from rank 0, so that the process exits with rank 0 even while it is blocked in a computation:
at once when the connection is closed, and after some seconds without a heartbeat.
"""

import contextlib
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.library_imports import ExceptionSummary
from mlxk.adapters.mlx.loading.load_errors import translated, unreadable_files
from mlxk.adapters.mlx.loading.model_files import identity_of, read_config, require_regular
from mlxk.adapters.mlx.ranks.channel import HEARTBEAT, Channel, introduce, versions
from mlxk.adapters.mlx.ranks.ring import EnvironmentSetter, Ring, available_backends
from mlxk.adapters.mlx.ranks.share import Cut, Share, cut_of, load_share, require_library
from mlxk.domain.errors import MlxkError, ModelNotFoundError, RankLostError, RevisionNotFoundError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle

CONNECT_SECONDS = 20.0

GONE = 0
"""Exit status of a rank after the loss of rank 0."""


@attrs.frozen
class RankSurroundings:
    """Properties of the running program that a rank needs."""

    own_version: str
    set_environment: EnvironmentSetter


_COMPARED = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt")
"""Extensions of the files that determine a model's output."""

_HASHING_THREADS = 8


def content_digest(handle: ModelHandle) -> str:
    """Return a digest of the names and contents of all files that determine a model's output.

    Raises:
        OSError: A file cannot be read.
        UnhealthyModelError: See ``require_regular``.
    """
    files = sorted(
        (name, path) for name, path in require_regular(handle) if name.endswith(_COMPARED) and not name.startswith(".")
    )
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        digests = list(threads.map(_file_digest, (path for _, path in files)))
    listed = [[name, digest] for (name, _), digest in zip(files, digests, strict=True)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def follow(orders: Mapping[str, Any], resolve: Callable[[str], ModelHandle], surroundings: RankSurroundings) -> None:
    """Execute the steps of rank 0 until it is lost, which ends this process, or a step fails.

    Args:
        orders: Orders of rank 0, which started this process: its ``address`` and ``port``, the ``key``, the number of
            this ``rank``, the address on which it ``listens``, and the seconds after which a ``silent`` peer is lost.
        resolve: Finds a model of this machine by its name.
        surroundings: See ``RankSurroundings``.
    """
    facts = {"rank": orders["rank"], "versions": versions(surroundings.own_version)}
    channel = introduce((orders["address"], orders["port"]), orders["key"], facts, CONNECT_SECONDS)
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    arguments = (channel, received, orders["silent"])
    threading.Thread(target=_receive, args=arguments, name="mlxk-rank-orders", daemon=True).start()
    threading.Thread(target=channel.beat, name="mlxk-rank-beat", daemon=True).start()
    try:
        share = _load(channel, received, orders, resolve, surroundings)
        while True:
            step = received.get()
            if step[0] == "read":
                _, cache, shape, logits = step
                share.read(cache, mx.zeros(shape, dtype=mx.int32), logits=logits)
            else:
                share.do(*step)
    except MlxkError as error:
        _report(channel, error.message, lost_another=isinstance(error, RankLostError))
    except Exception as error:  # noqa: BLE001 - boundary: the reason is reported to rank 0
        summary = ExceptionSummary.of(error)
        _report(channel, f"{summary.kind} in {summary.place}")


def account(orders: Mapping[str, Any], resolve: Callable[[str], ModelHandle]) -> dict[str, Any]:
    """Return this host's account of a model, by the fields of ``HostAccount``.

    Args:
        orders: The ``name`` of the model and the ``backends`` that can compute it; for the first host also the number
            of ranks among which it would be ``divided``, for others None.
        resolve: Finds a model of this machine by its name.
    """
    facts: dict[str, Any] = {"backends": available_backends()}
    try:
        handle = resolve(orders["name"])
    except (ModelNotFoundError, RevisionNotFoundError):
        return {**facts, "is_absent": True}
    except MlxkError as error:
        return {**facts, "problem": error.message}
    if orders["divided"] is not None:
        try:
            require_regular(handle)
            require_library(handle, orders["backends"])
            with translated(handle, "has an architecture mlx-lm does not know"):
                facts["cut"] = cut_of(handle, read_config(handle), orders["divided"]).value
        except MlxkError as error:
            facts["whole"] = error.message
    try:
        facts["digest"] = content_digest(handle)
    except OSError as error:
        facts["problem"] = unreadable_files(error, handle).message
    except MlxkError as error:
        facts["problem"] = error.message
    return facts


def _load(
    channel: Channel,
    received: "queue.SimpleQueue[Any]",
    orders: Mapping[str, Any],
    resolve: Callable[[str], ModelHandle],
    surroundings: RankSurroundings,
) -> Share:
    """Find the model, join the group and load the share, each step at the order of rank 0."""
    model = received.get()
    handle = resolve(model["name"])
    require_regular(handle)
    digest = content_digest(handle) if model["by_content"] else identity_of(handle)
    ring = Ring(orders["listens"])
    channel.send({"digest": digest, "port": ring.port})
    ring.meet(orders["rank"], received.get()["addresses"], orders["silent"])
    channel.send({"met": True})
    load = received.get()
    group = ring.join(surroundings.set_environment, orders["silent"])
    network, _, size = load_share(handle, Cut(load["cut"]), group, WeightForm(load["form"]))
    channel.send({"loaded": size})
    return Share(network, group)


def _report(channel: Channel, reason: str, *, lost_another: bool = False) -> None:
    with contextlib.suppress(RankLostError):
        channel.send({"failed": reason[:500], "lost_another": lost_another})


def _receive(channel: Channel, received: "queue.SimpleQueue[Any]", silent_seconds: float) -> None:
    with contextlib.suppress(RankLostError):
        while True:
            if (order := channel.receive(silent_seconds)) != HEARTBEAT:
                received.put(order)
    os._exit(GONE)
