"""Simulated servers behind a router, and the load of chats and agents: what ``replicas.py`` compares with real ones.

A server works as the engine does: chunks of waiting prompts, then one token of every running answer, and so on.
"""

import hashlib
import heapq
import random
import statistics
from collections import OrderedDict
from collections.abc import Sequence

import attrs

CHUNK_STEPS, MAX_CHUNKS, LONE_CHUNK = 8, 8, 256
"""The engine's rule: how many steps of one answer a chunk of a prompt takes, how many chunks are between two steps at
most, and the tokens of a chunk where no answer runs."""
STREAMS = 32
"""Most answers that a server computes together."""
KEPT_TOKENS = 60_000
"""Of prompts, by each server."""
MORE = 4
"""Requests that a server may have more than the idlest one before a conversation leaves it."""


@attrs.frozen
class Costs:
    """What one server needs, in seconds."""

    token: float
    """Of each token of a prompt."""
    step: float
    """Of each step that gives every running answer a token."""
    row: float
    """Of each answer in a step, beside that."""
    request: float
    """Of each request, beside all of it."""


@attrs.frozen
class Turn:
    """One request of the load."""

    pause: float
    """Seconds since the answer before it in its conversation, or since the beginning of the load."""
    conversation: int
    prompt: int
    known: int
    """Tokens of its prompt that the turn before had."""
    answer: int


@attrs.define
class Outcome:
    """What a load came to."""

    latencies: list[float] = attrs.field(factory=list)
    kept: int = 0
    """Tokens of prompts that were not computed again."""
    prompts: int = 0
    end: float = 0.0

    def line(self, name: str) -> str:
        """Return a row of a table."""
        ranked = sorted(self.latencies)
        late = ranked[int(0.95 * (len(ranked) - 1))]
        share = self.kept / self.prompts if self.prompts else 0
        mean = statistics.mean(ranked)
        return f"| {name} | {mean:.2f} | {late:.2f} | {len(ranked) / self.end:.2f} | {share:.0%} |"


Load = Sequence[tuple[Turn, ...]]
"""Conversations: a turn is sent a while after the answer to the one before it."""


def load_of(rate: float, requests: int, seed: int, words: tuple[float, float]) -> Load:
    """Return conversations that send about so many requests a second, once they have begun.

    Args:
        rate: Requests a second.
        requests: How many in all, at least.
        seed: Of the random numbers.
        words: The tokens of an empty prompt, and of a word.
    """
    source = random.Random(seed)
    load: list[tuple[Turn, ...]] = []
    began, total = 0.0, 0
    while total < requests:
        began += source.expovariate(rate / 4)
        moment, length, known, turns = began, source.choice((8, 16, 32)), 0, []
        for _ in range(1 + min(9, int(source.expovariate(1 / 3.5)))):
            prompt = round(words[0] + words[1] * length)
            turns.append(Turn(moment, len(load), prompt, known, 8 + min(56, int(source.expovariate(1 / 16)))))
            known, length = prompt, length + source.choice((2, 4, 12))
            moment = 0.5 + source.expovariate(1 / 2)
        load.append(tuple(turns))
        total += len(turns)
    return load


class Router:
    """Chooses the server of a request: the idlest one, or the conversation's own where that has not much more to do."""

    def __init__(self, servers: int, *, together: bool) -> None:
        self.busy = [0] * servers
        self._together = together

    def choose(self, conversation: int) -> int:
        """Return a server, and count the request as its own."""
        least = min(range(len(self.busy)), key=lambda each: (self.busy[each], each))
        chosen = least
        if self._together:
            ranks = [hashlib.sha256(f"{each} {conversation}".encode()).digest() for each in range(len(self.busy))]
            own = ranks.index(max(ranks))
            chosen = own if self.busy[own] <= self.busy[least] + MORE else least
        self.busy[chosen] += 1
        return chosen


@attrs.define(eq=False)
class _Running:
    turn: Turn
    left: int
    """Tokens of the prompt to compute, then of the answer."""


class Engine:
    """One simulated server."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._waiting: list[_Running] = []
        self._running: list[_Running] = []
        self._kept: OrderedDict[int, int] = OrderedDict()
        self.saved = 0
        self._passed_over = False

    def add(self, turn: Turn) -> None:
        """Take a request."""
        known = min(turn.known, self._kept.get(turn.conversation, 0))
        self.saved += known
        self._waiting.append(_Running(turn, turn.prompt - known))

    def step(self) -> tuple[float, list[Turn]]:
        """Work until every running answer has one more token; return the seconds, and the requests that are done."""
        seconds, costs, done = 0.0, self._costs, []
        shared = max(4, int(CHUNK_STEPS * (costs.step + costs.row) / costs.token))
        share = len(self._waiting) // max(1, len(self._running))
        for _ in range(min(MAX_CHUNKS, max(1, share)) if self._running else 1):
            if self._waiting and len(self._running) < STREAMS:
                seconds += self._compute(shared if self._running else LONE_CHUNK)
        if self._running:
            seconds += costs.step + costs.row * len(self._running)
            for each in self._running:
                each.left -= 1
            done = [each.turn for each in self._running if each.left == 0]
            self._running = [each for each in self._running if each.left]
        return seconds, done

    def _compute(self, chunk: int) -> float:
        """Compute tokens of the prompt with the fewest left, or of the oldest one where that was passed over."""
        shortest = min(self._waiting, key=lambda each: each.left)
        chosen = self._waiting[0] if self._passed_over else shortest
        self._passed_over = chosen is not self._waiting[0]
        computed = min(chosen.left, chunk + chunk // 2)
        computed = computed if computed == chosen.left else chunk
        chosen.left -= computed
        if chosen.left:
            return computed * self._costs.token
        self._waiting.remove(chosen)
        chosen.left = chosen.turn.answer
        self._running.append(chosen)
        self._keep(chosen.turn)
        return computed * self._costs.token + self._costs.request

    def _keep(self, turn: Turn) -> None:
        self._kept[turn.conversation] = turn.prompt
        self._kept.move_to_end(turn.conversation)
        while sum(self._kept.values()) > KEPT_TOKENS:
            self._kept.popitem(last=False)


def simulated(load: Load, costs: Costs, servers: int, *, together: bool) -> Outcome:
    """Return what a load comes to."""
    engines, router = [Engine(costs) for _ in range(servers)], Router(servers, together=together)
    outcome = Outcome(prompts=sum(turn.prompt for turns in load for turn in turns))
    # What happens: a conversation sends its next turn (server -1), or a server has done a step.
    moments = [(turns[0].pause, -1, index) for index, turns in enumerate(load)]
    heapq.heapify(moments)
    sent, begun = [0] * len(load), [0.0] * len(load)
    ending: list[list[Turn]] = [[] for _ in engines]
    asleep = [True] * servers
    while moments:
        now, server, index = heapq.heappop(moments)
        if server < 0:
            chosen = router.choose(index)
            engines[chosen].add(load[index][sent[index]])
            sent[index], begun[index] = sent[index] + 1, now
            if asleep[chosen]:
                asleep[chosen] = False
                heapq.heappush(moments, (now, chosen, 0))
            continue
        for turn in ending[server]:
            outcome.latencies.append(now - begun[turn.conversation])
            router.busy[server] -= 1
            outcome.end = now
            for following in load[turn.conversation][sent[turn.conversation] :][:1]:
                heapq.heappush(moments, (now + following.pause, -1, turn.conversation))
        seconds, ending[server] = engines[server].step()
        asleep[server] = seconds == 0
        if seconds:
            heapq.heappush(moments, (now + seconds, server, 0))
    outcome.kept = sum(engine.saved for engine in engines)
    return outcome


def demand(load: Load, costs: Costs, *, kept: bool, full: bool) -> float:
    """Return the mean seconds that a request takes of a server.

    Args:
        load: What is asked.
        costs: Its costs.
        kept: Whether all is kept that turns have in common, or nothing.
        full: Whether its answers share their steps with as many as a server computes, or have them alone.
    """
    step = costs.row + costs.step / (STREAMS if full else 1)
    return costs.request + statistics.mean(
        (turn.prompt - turn.known * kept) * costs.token + turn.answer * step for turns in load for turn in turns
    )
