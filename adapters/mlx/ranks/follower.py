"""A rank other than the first: it joins the group, loads its share, and does the steps that rank 0 decides.

What rank 0 sends is read by a thread of its own, so that the process ends with rank 0, even while it waits for other
ranks in a computation: at once when the connection ends, and after some seconds when nothing comes over it any more.
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
from mlxk.adapters.mlx.ranks.backends import available_backends
from mlxk.adapters.mlx.ranks.channel import SIGN_OF_LIFE, Channel, introduce, versions
from mlxk.adapters.mlx.ranks.ring import Ring, Told
from mlxk.adapters.mlx.ranks.share import Cut, Share, cut_of, load_share, require_library
from mlxk.domain.errors import MlxkError, ModelNotFoundError, RankLostError, RevisionNotFoundError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle

CONNECT_SECONDS = 20.0

GONE = 0
"""Exit status of a rank that ends with rank 0."""


@attrs.frozen
class RankSurroundings:
    """What a rank needs of the program that it is part of."""

    own_version: str
    told: Told


_COMPARED = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt")
"""Ends of the names of files that a model is computed from."""

_HASHING_THREADS = 8


def content_digest(handle: ModelHandle) -> str:
    """Return a digest of all bytes of the files that a model is computed from, and of their names.

    Raises:
        OSError: One cannot be read.
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


def follow(orders: Mapping[str, Any], resolve: Callable[[str], ModelHandle], by: RankSurroundings) -> None:
    """Do what rank 0 decides until it has gone, which ends this process.

    Args:
        orders: From rank 0, which started this process: its ``address`` and ``port``, the ``key``, this ``rank``, the
            address on which it ``listens``, and after how many seconds what is ``silent`` counts as gone.
        resolve: Finds a model of this machine by its name.
        by: The program.
    """
    facts = {"rank": orders["rank"], "versions": versions(by.own_version)}
    channel = introduce((orders["address"], orders["port"]), orders["key"], facts, CONNECT_SECONDS)
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reading = (channel, received, orders["silent"])
    threading.Thread(target=_receive, args=reading, name="mlxk-rank-orders", daemon=True).start()
    threading.Thread(target=channel.beat, name="mlxk-rank-beat", daemon=True).start()
    try:
        share = _prepared(channel, received, orders, resolve, by)
        while True:
            step = received.get()
            if step[0] == "read":
                _, cache, shape, logits = step
                share.read(cache, mx.zeros(shape, dtype=mx.int32), logits=logits)
            else:
                share.do(*step)
    except MlxkError as error:
        _report(channel, error.message, lost_another=isinstance(error, RankLostError))
    except Exception as error:  # noqa: BLE001 - boundary: rank 0 must learn why this rank ends
        summary = ExceptionSummary.of(error)
        _report(channel, f"{summary.kind} in {summary.place}")


def account(orders: Mapping[str, Any], resolve: Callable[[str], ModelHandle]) -> dict[str, Any]:
    """Return what this host says of a model, in fields of a ``HostAccount``.

    Args:
        orders: The ``name`` of the model; of the first host how many ranks it would be ``divided`` among, and the
            ``backends`` that can compute it.
        resolve: Finds a model of this machine by its name.
    """
    said: dict[str, Any] = {"backends": available_backends()}
    try:
        handle = resolve(orders["name"])
    except (ModelNotFoundError, RevisionNotFoundError):
        return {**said, "is_absent": True}
    except MlxkError as error:
        return {**said, "problem": error.message}
    if orders["divided"] is not None:
        try:
            require_regular(handle)
            require_library(handle, orders["backends"])
            with translated(handle, "has an architecture mlx-lm does not know"):
                said["cut"] = cut_of(handle, read_config(handle), orders["divided"]).value
        except MlxkError as error:
            said["whole"] = error.message
    try:
        said["digest"] = content_digest(handle)
    except OSError as error:
        said["problem"] = unreadable_files(error, handle).message
    except MlxkError as error:
        said["problem"] = error.message
    return said


def _prepared(
    channel: Channel,
    received: "queue.SimpleQueue[Any]",
    orders: Mapping[str, Any],
    resolve: Callable[[str], ModelHandle],
    by: RankSurroundings,
) -> Share:
    """Find the model, join the group and load the share, each when rank 0 says so."""
    model = received.get()
    handle = resolve(model["name"])
    require_regular(handle)
    found = content_digest(handle) if model["by_content"] else identity_of(handle)
    ring = Ring(orders["listens"])
    channel.send({"digest": found, "port": ring.port})
    ring.meet(orders["rank"], received.get()["addresses"], orders["silent"])
    channel.send({"met": True})
    load = received.get()
    group = ring.join(by.told, orders["silent"])
    network, _, size = load_share(handle, Cut(load["cut"]), group, WeightForm(load["form"]))
    channel.send({"loaded": size})
    return Share(network, group)


def _report(channel: Channel, reason: str, *, lost_another: bool = False) -> None:
    with contextlib.suppress(RankLostError):
        channel.send({"failed": reason[:500], "lost_another": lost_another})


def _receive(channel: Channel, received: "queue.SimpleQueue[Any]", silent_seconds: float) -> None:
    with contextlib.suppress(RankLostError):
        while True:
            if (order := channel.receive(silent_seconds)) != SIGN_OF_LIFE:
                received.put(order)
    os._exit(GONE)
