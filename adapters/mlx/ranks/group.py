"""The group of ranks as rank 0 sees it: checks that all are alike, loads their shares, and notices when one has gone.

A group serves one model for as long as it lives. MLX joins a group once in the life of a process, so a group that has
lost a rank is over: this process ends, and another one starts a new group.
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
from mlxk.adapters.mlx.ranks.channel import SIGN_OF_LIFE, Channel, admit, lost, versions
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
"""Time for all ranks to check and load their shares; one that is silent or has gone is lost earlier."""

END_SECONDS = 2.0
"""Time for ranks to end by themselves."""

STEP_SILENCES = 6
"""A step may take so many times the silence after which a rank is lost; then something between ranks holds it up."""

LOOK_SECONDS = 2.0
"""Between two looks whether steps are done."""


class RankGroup:
    """All ranks of one model. ``load`` is called on the owner thread, everything else on any.

    Args:
        launch: The other ranks, started.
        log: Receives starts and losses.
        by: The program.
        on_loss: Called once when a rank has gone from a loaded model, with the error for what was running, on any
            thread.
        responds: Whether the owner thread is not in a computation, asked on a thread of the group.
    """

    def __init__(
        self,
        launch: Launch,
        log: EventLog,
        by: RankSurroundings,
        on_loss: Callable[[MlxkError], None],
        responds: Callable[[], bool] = lambda: True,
    ) -> None:
        self.plan = launch.plan
        self._launch = launch
        self.loss: MlxkError | None = None
        """Why the group is over; None while it is not."""
        self._log = log
        self._by = by
        self._on_loss = on_loss
        self._responds = responds
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._closed = False
        self._channels: dict[int, Channel] = {}
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        """What each rank answers; None once the group is over."""
        self._ring: Ring | None = None
        self._loaded: LoadedModel | None = None

    def load(self, handle: ModelHandle, form: WeightForm) -> LoadedModel:
        """Join the ranks to a group and load a model; once it is loaded, return it again.

        Raises:
            IncompatibleModelError: It cannot be divided among so many; no rank has loaded anything.
            CapabilityError: The group has another model.
            RankLostError: A rank has gone, or could not be started.
            ExecutionError: A rank has other files or versions.
            MlxkError: See ``load_model``.
        """
        self.require_whole()
        known = self._loaded
        if known is not None and known.identity != identity_of(handle):
            raise CapabilityError(
                f"This program has '{known.name}' spread over {self.plan.size} processes, and computes no other model"
                " or state of its files.",
                hint="Start another server for another model.",
            )
        if known is None:
            began = time.monotonic()
            try:
                known = self._start(handle, form)
                with self._lock:
                    self.require_whole()
                    self._loaded = known
            except BaseException:
                self.close()
                raise
            self._log.info(
                "ranks compute a model together",
                model=handle.name,
                ranks=self.plan.size,
                seconds=round(time.monotonic() - began, 3),
            )
        return known

    def require_whole(self) -> None:
        """Refuse work when a rank has gone.

        Raises:
            RankLostError: One has.
            ExecutionError: One could not take part.
        """
        if self.loss is not None:
            raise type(self.loss)(self.loss.message, hint=self.loss.hint)

    def lose(self, error: MlxkError) -> None:
        """End the group: a rank has gone, or does not do the same as the others."""
        with self._lock:
            if self.loss is not None or self._closed:
                return
            self.loss = error
            is_loaded = self._loaded is not None
        # A rank that waits in a computation for the one that is gone would wait for long.
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
        ring = self._met(handle)
        self._tell({"cut": cut.value, "form": form.value})
        group = ring.join(self._by.told, self.plan.silent_seconds)
        with translated(handle, "has an architecture mlx-lm does not know"):
            network, loaded, size = load_share(handle, cut, group, form)
            tokenizer = load_tokenizer(handle, loaded.get("eos_token_id", config.get("eos_token_id")))
        for rank, channel in self._channels.items():
            self._answer(rank, channel, "loaded")
        threading.Thread(target=self._watch_steps, name="mlxk-rank-steps", daemon=True).start()
        steps = StepLog(Share(network, group), self._tell, self._on_failed_step)
        model = assemble(handle, identity_of(handle), RankedNetwork(steps), tokenizer, config, held=size)
        return attrs.evolve(model, cache_bytes_per_token=-(-model.cache_bytes_per_token // self.plan.size))

    def _connect(self) -> None:
        """Wait until each rank has proved that it is one and has the same versions."""
        deadline = time.monotonic() + START_SECONDS
        while len(self._channels) < len(self.plan.others):
            self.require_whole()
            if time.monotonic() > deadline:
                raise RankLostError(f"Not all processes of the model started within {START_SECONDS:g} seconds.")
            connection = self._launch.connection()
            if connection is not None:
                self._admit(connection, self._launch.key)
        self._launch.stop_listening()

    def _admit(self, connection: socket.socket, key: str) -> None:
        try:
            channel, hello = admit(connection, key)
        except RankLostError:  # another program, which may ask, and is not answered
            self._log.warning("a connection that is no rank's was refused")
            return
        rank, theirs, ours = hello["rank"], hello["versions"], versions(self._by.own_version)
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

    def _met(self, handle: ModelHandle) -> Ring:
        """Have all ranks find the model, compare their files, and see whether neighbours reach each other."""
        by_content = not self.plan.same_files
        self._tell({"name": name_everywhere(handle), "by_content": by_content})
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
        self._tell({"addresses": addresses})
        ring.meet(0, addresses, self.plan.silent_seconds)
        for rank, channel in self._channels.items():
            self._answer(rank, channel, "met")
        return ring

    def _answer(self, rank: int, channel: Channel, field: str) -> dict[str, Any]:
        """Wait for what a rank answers."""
        try:
            answer = self._answers[rank].get(timeout=LOAD_SECONDS)
        except queue.Empty:
            raise lost(channel.peer, f"has not answered for {LOAD_SECONDS:g} seconds") from None
        if answer is None or field not in answer:
            self.require_whole()
            raise lost(channel.peer, "sends what no rank sends")
        return answer

    def _listen(self, rank: int, channel: Channel) -> None:
        """Note what a rank answers, and lose it when it has failed or gone."""
        try:
            while True:
                said = channel.receive(self.plan.silent_seconds)
                if "failed" in said:
                    raise self._failed(channel.peer, **said)
                if said != SIGN_OF_LIFE:
                    self._answers[rank].put(said)
        except MlxkError as error:
            self.lose(error)

    def _failed(self, peer: str, failed: str, lost_another: bool) -> MlxkError:
        if self._loaded is not None:
            return lost(peer, f"has failed ({failed})")
        return (RankLostError if lost_another else ExecutionError)(f"{peer} cannot take part: {failed}")

    def _watch_steps(self) -> None:
        """Lose the group when a step takes too long, though all ranks show signs of life."""
        most, responded = STEP_SILENCES * self.plan.silent_seconds, time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            if self._responds():
                responded = time.monotonic()
            elif time.monotonic() - responded > most:
                self.lose(lost("one of them", f"has not done a step within {most:g} seconds: see the network"))

    def _tell(self, step: Any) -> None:  # noqa: ANN401 - JSON
        self.require_whole()
        try:
            for channel in self._channels.values():
                channel.send(step)
        except RankLostError as error:
            self.lose(error)
            raise

    def _on_failed_step(self) -> None:
        self.lose(lost("rank 0", "has failed in a step"))
