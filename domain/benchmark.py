"""What a benchmark measures, and the arithmetic that makes figures of it: rows of a model, levels of a server."""

import datetime
import enum
import math
from collections import Counter
from collections.abc import Sequence

import attrs

NOISY_SHARE = 0.1
"""Share of the median from which the interquartile range says that something else disturbed the measurement."""

LEAST_PROMPT = 8
"""Tokens of the prompt before a measured generation; it needs one."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of some values lies, interpolated between the two nearest.

    Args:
        values: At least one, in any order.
        share: 0 to 1; 0.5 is the median.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@attrs.frozen
class Spread:
    """The middle of repeated measurements, and how far they lie apart."""

    median: float
    lower_quartile: float
    upper_quartile: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(*(percentile(values, share) for share in (0.5, 0.25, 0.75, 0.0, 1.0)))

    @property
    def interquartile_range(self) -> float:
        """The range of the middle half of the values."""
        return self.upper_quartile - self.lower_quartile

    @property
    def noisy(self) -> bool:
        """Whether the values lie so far apart that a small difference to another benchmark says nothing."""
        return self.interquartile_range > NOISY_SHARE * abs(self.median)


@attrs.frozen
class Span:
    """When something was measured, in UTC."""

    began: datetime.datetime
    ended: datetime.datetime


class Phase(enum.Enum):
    """What a row measures."""

    PROMPT = "prompt"
    """The processing of prompts."""
    GENERATION = "generation"
    """The generation of tokens."""


@attrs.frozen
class Shape:
    """What is computed for one row."""

    phase: Phase
    tokens: int
    """Of each prompt, or generated in each stream."""
    streams: int = 1
    """Sequences computed at the same time."""
    depth: int = 0
    """Tokens of the prompt before a generation."""

    @property
    def name(self) -> str:
        """The name by which such rows are known: ``pp512``, ``tg128``, ``tg128 @ d4096``."""
        if self.phase is Phase.PROMPT:
            return f"pp{self.tokens}"
        return f"tg{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def prompt_tokens(self) -> int:
        """Tokens of each prompt."""
        return self.tokens if self.phase is Phase.PROMPT else max(self.depth, LEAST_PROMPT)

    @property
    def generated_tokens(self) -> int:
        """Tokens to generate in each stream."""
        return 1 if self.phase is Phase.PROMPT else self.tokens


@attrs.frozen
class StreamTimes:
    """One completion that was measured; times are seconds of one clock."""

    began: float
    first_token: float
    ended: float
    prompt_tokens: int
    """Those computed; tokens from a cache do not count."""
    completion_tokens: int

    @property
    def first_token_seconds(self) -> float:
        """The time to the first token."""
        return self.first_token - self.began


def tokens_per_second(phase: Phase, streams: Sequence[StreamTimes]) -> float:
    """Return the speed of all streams of a run together; 0 where no time has passed.

    The tokens of prompts are divided by the time up to the last first token, the generated ones after the first by the
    time from the first of these to the end of the last stream.
    """
    if phase is Phase.PROMPT:
        tokens = sum(each.prompt_tokens for each in streams)
        seconds = max(each.first_token for each in streams) - min(each.began for each in streams)
    else:
        tokens = sum(max(0, each.completion_tokens - 1) for each in streams)
        seconds = max(each.ended for each in streams) - min(each.first_token for each in streams)
    return tokens / seconds if seconds > 0 else 0.0


@attrs.frozen
class Row:
    """The result for one shape, over its repeats."""

    shape: Shape
    repeats: int
    tokens_per_second: Spread
    """Of all streams together."""
    first_token_seconds: Spread
    """Of every stream of every repeat."""
    span: Span | None = None
    """All runs, the first one that does not count included."""

    @classmethod
    def of(cls, shape: Shape, runs: Sequence[Sequence[StreamTimes]], span: Span | None = None) -> "Row":
        """Return the row of at least one run."""
        rates = [tokens_per_second(shape.phase, run) for run in runs]
        first = [each.first_token_seconds for run in runs for each in run]
        return cls(shape, len(runs), Spread.of(rates), Spread.of(first), span)

    @property
    def noisy(self) -> bool:
        """Whether its speed varies much."""
        return self.tokens_per_second.noisy


@attrs.frozen
class Processor:
    """The processor of a machine."""

    name: str
    """As its maker calls it; empty when the system does not say."""
    cores: int
    """Logical ones."""


@attrs.frozen
class Machine:
    """The machine that measures, without anything that tells whose it is."""

    system: str
    """Name and version."""
    architecture: str
    processor: Processor
    memory_bytes: int | None
    """None when unknown."""
    on_cpu: bool
    """Whether models are computed on the CPU, for lack of a GPU that is supported."""
    matrix_library: str | None
    """The library that multiplies matrices on the CPU; None for the plain one, and with a GPU."""
    load_before: float | None
    """The load of other programs before it began, as a share of all cores; None when unknown."""
    versions: tuple[tuple[str, str], ...]
    """Packages that compute, and Python, each with its version."""


BUSY_LOAD = 0.25
"""Share of all cores from which other programs are said to disturb the measurement."""


CACHED_SHARE = 0.1
"""Share of the prompts' tokens from which a server's cache is said to shorten its times."""


@attrs.frozen
class StatedTimes:
    """How long a server says that it took, in seconds; None where it does not."""

    load: float | None = None
    """To have the model in memory; next to nothing where it had it."""
    prompt: float | None = None
    generation: float | None = None


@attrs.frozen
class StatedSpeeds:
    """Tokens a second as a server states them, without its queue and the network: medians over requests."""

    prompt: float | None
    generation: float | None

    @classmethod
    def of(cls, completions: Sequence["RemoteCompletion"]) -> "StatedSpeeds | None":
        """Return those of completions; None where none states any."""
        stated = [(each, each.stated) for each in completions if each.stated is not None]
        prompts = [_rate(each.prompt_tokens, times.prompt) for each, times in stated]
        answers = [_rate(each.completion_tokens, times.generation) for each, times in stated]
        found = cls(_median(prompts), _median(answers))
        return None if found.prompt is None and found.generation is None else found


def _rate(tokens: int | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens and seconds else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return percentile(known, 0.5) if known else None


@attrs.frozen
class RemoteCompletion:
    """One request to a server; times are seconds of one clock."""

    began: float
    ended: float
    first_token: float | None = None
    """None when there was none."""
    prompt_tokens: int | None = None
    """As the server counts them; None when it does not say."""
    completion_tokens: int | None = None
    """As above."""
    cached_tokens: int | None = None
    """Prompt tokens that the server took from a cache, as above."""
    failure: str | None = None
    """Why there is no whole answer, in a few words that are the same for the same reason; None for success."""
    status: int | None = None
    """The HTTP status; None when there was no answer."""
    stated: StatedTimes | None = None
    """What the server says of its own times; None when it does not."""
    text: str = attrs.field(default="", repr=False)
    """The answer, without reasoning and calls."""

    @property
    def inter_token_seconds(self) -> float | None:
        """The mean time between two tokens; None where the tokens are not known, or fewer than two."""
        if self.first_token is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.ended - self.first_token) / (self.completion_tokens - 1)


@attrs.frozen
class Percentiles:
    """What so many in a hundred of some values do not exceed."""

    p25: float
    p50: float
    p75: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles | None":
        """Return those of some values; None without any."""
        return cls(*(percentile(values, share) for share in (0.25, 0.5, 0.75, 0.9, 0.99))) if values else None


@attrs.frozen
class Load:
    """What is asked of a server at one level."""

    streams: int
    """Requests at the same time."""
    prompt_words: int
    max_tokens: int


@attrs.frozen
class Level:
    """The result for one load. Seconds are those of requests that succeeded."""

    load: Load
    requests: int
    failures: tuple[tuple[str, int], ...]
    """Reasons, the most frequent first, each with the number of requests."""
    seconds: float
    """From the first request to the end of the last."""
    prompt_tokens: int | None
    """Of all requests together; None unless the server said it of each that succeeded."""
    completion_tokens: int | None
    """As above."""
    cached_tokens: int | None
    """As above."""
    first_token_seconds: Percentiles | None
    inter_token_seconds: Percentiles | None
    """The mean of each request."""
    end_to_end_seconds: Percentiles | None
    stated: StatedSpeeds | None = None
    """None where the server does not state any."""
    span: Span | None = None
    """All requests, those before that do not count included."""

    @property
    def failed(self) -> int:
        """Requests without a whole answer."""
        return sum(count for _, count in self.failures)

    @property
    def succeeded(self) -> int:
        """Requests with a whole answer."""
        return self.requests - self.failed

    @property
    def ends_early(self) -> bool:
        """Whether answers are shorter than was asked for."""
        return self.completion_tokens is not None and self.completion_tokens < self.succeeded * self.load.max_tokens

    @property
    def cuts_prompts(self) -> bool:
        """Whether prompts have fewer tokens than words, each of which is one token at least."""
        return self.prompt_tokens is not None and self.prompt_tokens < self.succeeded * self.load.prompt_words

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens of all streams together; None where the server does not count them."""
        if self.completion_tokens is None or self.seconds <= 0:
            return None
        return self.completion_tokens / self.seconds

    @property
    def requests_per_second(self) -> float:
        """Requests that succeeded."""
        return self.succeeded / self.seconds if self.seconds > 0 else 0.0

    @classmethod
    def of(cls, load: Load, completions: Sequence[RemoteCompletion], span: Span | None = None) -> "Level":
        """Return the level of at least one request."""
        whole = [each for each in completions if each.failure is None]
        reasons = Counter(each.failure for each in completions if each.failure is not None)
        return cls(
            load,
            len(completions),
            tuple(reasons.most_common()),
            max(each.ended for each in completions) - min(each.began for each in completions),
            _total([each.prompt_tokens for each in whole]),
            _total([each.completion_tokens for each in whole]),
            _total([each.cached_tokens for each in whole]),
            Percentiles.of([each.first_token - each.began for each in whole if each.first_token is not None]),
            Percentiles.of([each.inter_token_seconds for each in whole if each.inter_token_seconds is not None]),
            Percentiles.of([each.ended - each.began for each in whole]),
            StatedSpeeds.of(whole),
            span,
        )


def _total(counts: Sequence[int | None]) -> int | None:
    known = [each for each in counts if each is not None]
    return sum(known) if known and len(known) == len(counts) else None
