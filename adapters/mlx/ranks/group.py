"""Rank 0's control of the group: compares versions and files of all ranks, has shares loaded, and detects lost ranks.

A group serves one model during its whole life. MLX joins a group once in the life of a process, so the loss of a rank
ends the group: this process exits, and another one starts a new group.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import identity_of, read_config, require_regular
from mlxk.adapters.mlx.loading.text_model import LoadedModel, assemble, load_tokenizer
from mlxk.adapters.mlx.ranks.channel import HEARTBEAT, Channel, admit, lost, versions
from mlxk.adapters.mlx.ranks.follower import RankSurroundings, content_digest
from mlxk.adapters.mlx.ranks.launch import Launch
from mlxk.adapters.mlx.ranks.network import RankedNetwork, StepLog
from mlxk.adapters.mlx.ranks.ring import Ring
from mlxk.adapters.mlx.ranks.share import Share, cut_of, load_share
from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import CapabilityError, ExecutionError, MlxkError, RankLostError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.ranks import name_everywhere

START_SECONDS = 60.0
"""Time for all ranks to start and connect."""

LOAD_SECONDS = 1800.0
"""Time for all ranks to check and load their shares; a silent rank is lost earlier."""

END_SECONDS = 2.0
"""Time for ranks to exit by themselves."""

STEP_SILENCES = 6
"""Time limit of a step, in multiples of ``RankPlan.silent_seconds``; beyond it the ranks' network is blocked."""

LOOK_SECONDS = 2.0
"""Interval between checks for a blocked step."""


class RankGroup:
    """All ranks of one model. ``load`` is called on the owner thread, everything else on any.

    Args:
        launch: The started processes of the other ranks.
        log: Receives starts and losses.
        surroundings: See ``RankSurroundings``.
        on_loss: Called once, on any thread, when a loaded model loses a rank; gets the error for running requests.
        responds: Returns whether the owner thread responds, that is, is in no computation; called on a thread of the
            group.
    """

    def __init__(
        self,
        launch: Launch,
        log: EventLog,
        surroundings: RankSurroundings,
        on_loss: Callable[[MlxkError], None],
        responds: Callable[[], bool] = lambda: True,
    ) -> None:
        self.plan = launch.plan
        self._launch = launch
        self.loss: MlxkError | None = None
        """The error that ended the group; None while it is intact."""
        self._log = log
        self._surroundings = surroundings
        self._on_loss = on_loss
        self._responds = responds
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._closed = False
        self._channels: dict[int, Channel] = {}
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        """Queue of each rank's answers; None in it means that the group has ended."""
        self._ring: Ring | None = None
        self._loaded: LoadedModel | None = None

    def load(self, handle: ModelHandle, form: WeightForm) -> LoadedModel:
        """Form the group and load the model; return the loaded model at later calls.

        Raises:
            IncompatibleModelError: The model cannot be divided among so many ranks; raised before any rank loads.
            CapabilityError: The group has loaded another model.
            RankLostError: A rank is lost, or could not be started.
            ExecutionError: A rank has other files or versions.
            MlxkError: See ``load_model``.
        """
        self.require_complete()
        model = self._loaded
        if model is not None and model.identity != identity_of(handle):
            raise CapabilityError(
                f"This program has '{model.name}' spread over {self.plan.size} processes, and computes no other model"
                " or state of its files.",
                hint="Start another server for another model.",
            )
        if model is None:
            began = time.monotonic()
            try:
                model = self._start(handle, form)
                with self._lock:
                    self.require_complete()
                    self._loaded = model
            except BaseException:
                self.close()
                raise
            self._log.info(
                "ranks compute a model together",
                model=handle.name,
                ranks=self.plan.size,
                seconds=round(time.monotonic() - began, 3),
            )
        return model

    def require_complete(self) -> None:
        """Raise the error that ended the group, if any.

        Raises:
            RankLostError: A rank is lost.
            ExecutionError: A rank could not take part.
        """
        if self.loss is not None:
            raise type(self.loss)(self.loss.message, hint=self.loss.hint)

    def lose(self, error: MlxkError) -> None:
        """End the group: a rank is lost, or its share may differ from the others."""
        with self._lock:
            if self.loss is not None or self._closed:
                return
            self.loss = error
            is_loaded = self._loaded is not None
        # No time to exit by themselves: ranks may be blocked in a computation with the lost one.
        self._end(grace=0.0)
        if is_loaded:  # else ``load`` raises the error
            self._log.error("a rank is lost", reason=error.message)
            self._on_loss(error)

    def close(self) -> None:
        """End all other ranks."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._end(grace=END_SECONDS if self._channels else 0.0)

    def _end(self, grace: float) -> None:
        self._over.set()
        for channel in list(self._channels.values()):
            channel.close()
        for answers in list(self._answers.values()):
            answers.put(None)
        if self._ring is not None:
            self._ring.break_up()
        self._launch.end(grace)

    def _start(self, handle: ModelHandle, form: WeightForm) -> LoadedModel:
        require_regular(handle)
        config = read_config(handle)
        with translated(handle, "has an architecture mlx-lm does not know"):
            cut = cut_of(handle, config, self.plan.size)
        self._connect()
        ring = self._meet(handle)
        self._send({"cut": cut.value, "form": form.value})
        group = ring.join(self._surroundings.set_environment, self.plan.silent_seconds)
        with translated(handle, "has an architecture mlx-lm does not know"):
            network, loaded, size = load_share(handle, cut, group, form)
            tokenizer = load_tokenizer(handle, loaded.get("eos_token_id", config.get("eos_token_id")))
        for rank, channel in self._channels.items():
            self._answer(rank, channel, "loaded")
        threading.Thread(target=self._watch_steps, name="mlxk-rank-steps", daemon=True).start()
        steps = StepLog(Share(network, group), self._send, self._on_failed_step)
        model = assemble(handle, identity_of(handle), RankedNetwork(steps), tokenizer, config, widened_bytes=size)
        return attrs.evolve(model, cache_bytes_per_token=-(-model.cache_bytes_per_token // self.plan.size))

    def _connect(self) -> None:
        """Wait until all ranks have connected, with the key and the same versions."""
        deadline = time.monotonic() + START_SECONDS
        while len(self._channels) < len(self.plan.others):
            self.require_complete()
            if time.monotonic() > deadline:
                raise RankLostError(f"Not all processes of the model started within {START_SECONDS:g} seconds.")
            connection = self._launch.connection()
            if connection is not None:
                self._admit(connection, self._launch.key)
        self._launch.stop_listening()

    def _admit(self, connection: socket.socket, key: str) -> None:
        try:
            channel, hello = admit(connection, key)
        except RankLostError:  # another program: it must not end the group
            self._log.warning("a connection that is no rank's was refused")
            return
        rank, theirs, ours = hello["rank"], hello["versions"], versions(self._surroundings.own_version)
        place = self.plan.others[rank - 1]
        channel.peer = place.label
        self._channels[rank], self._answers[rank] = channel, queue.SimpleQueue()
        for work, arguments in ((self._listen, (rank, channel)), (channel.beat, ())):
            threading.Thread(target=work, args=arguments, name="mlxk-rank-watch", daemon=True).start()
        for name, version in ours.items():
            if theirs.get(name) != version:
                raise ExecutionError(
                    f"{place.label} has {name} {theirs.get(name)}, and this process {version}.",
                    hint="Install the same version everywhere: ranks of different versions may compute differently.",
                )

    def _meet(self, handle: ModelHandle) -> Ring:
        """Have all ranks find the model, compare their files with this one's, and test the ring's connections."""
        by_content = not self.plan.same_files
        self._send({"name": name_everywhere(handle), "by_content": by_content})
        own = content_digest(handle) if by_content else identity_of(handle)
        ring = self._ring = Ring(self.plan.address)
        addresses = [f"{self.plan.address}:{ring.port}"]
        for rank, channel in sorted(self._channels.items()):
            place, answer = self.plan.others[rank - 1], self._answer(rank, channel, "digest")
            if answer["digest"] is None or answer["digest"] != own:
                raise ExecutionError(
                    f"{place.label} has other files of '{handle.name}' than this process.",
                    hint="Bring the same model to every machine, such as with pull and the same revision.",
                )
            addresses.append(f"{place.address}:{answer['port']}")
        self._send({"addresses": addresses})
        ring.meet(0, addresses, self.plan.silent_seconds)
        for rank, channel in self._channels.items():
            self._answer(rank, channel, "met")
        return ring

    def _answer(self, rank: int, channel: Channel, field: str) -> dict[str, Any]:
        """Wait for an answer of a rank with a field."""
        try:
            answer = self._answers[rank].get(timeout=LOAD_SECONDS)
        except queue.Empty:
            raise lost(channel.peer, f"has not answered for {LOAD_SECONDS:g} seconds") from None
        if answer is None or field not in answer:
            self.require_complete()
            raise lost(channel.peer, "sends what no rank sends")
        return answer

    def _listen(self, rank: int, channel: Channel) -> None:
        """Queue the answers of a rank; end the group when the rank fails or is lost."""
        try:
            while True:
                answer = channel.receive(self.plan.silent_seconds)
                if "failed" in answer:
                    raise self._failed(channel.peer, **answer)
                if answer != HEARTBEAT:
                    self._answers[rank].put(answer)
        except MlxkError as error:
            self.lose(error)

    def _failed(self, peer: str, failed: str, lost_another: bool) -> MlxkError:
        if self._loaded is not None:
            return lost(peer, f"has failed ({failed})")
        return (RankLostError if lost_another else ExecutionError)(f"{peer} cannot take part: {failed}")

    def _watch_steps(self) -> None:
        """End the group when a step takes too long although all ranks send heartbeats."""
        most, responded = STEP_SILENCES * self.plan.silent_seconds, time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            if self._responds():
                responded = time.monotonic()
            elif time.monotonic() - responded > most:
                self.lose(lost("one of them", f"has not done a step within {most:g} seconds: see the network"))

    def _send(self, step: Any) -> None:  # noqa: ANN401 - JSON
        self.require_complete()
        try:
            for channel in self._channels.values():
                channel.send(step)
        except RankLostError as error:
            self.lose(error)
            raise

    def _on_failed_step(self) -> None:
        self.lose(lost("rank 0", "has failed in a step"))
