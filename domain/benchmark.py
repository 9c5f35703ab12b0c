"""Benchmarks: what is measured, and how results are computed. A model gives rows, a server under load gives levels."""

import datetime
import enum
import math
from collections import Counter
from collections.abc import Sequence

import attrs

NOISY_SHARE = 0.1
"""Interquartile range, as a share of the median, above which a measurement counts as disturbed."""

LEAST_PROMPT = 8
"""Least prompt tokens before a measured generation, which needs a prompt."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, interpolated linearly between the two nearest values.

    Args:
        values: At least one, in any order.
        share: 0 to 1; 0.5 is the median.
    """
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@attrs.frozen
class Spread:
    """Median, quartiles and range of repeated measurements."""

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
        """Upper minus lower quartile."""
        return self.upper_quartile - self.lower_quartile

    @property
    def noisy(self) -> bool:
        """Whether the values scatter so much that a small difference from another benchmark means nothing."""
        return self.interquartile_range > NOISY_SHARE * abs(self.median)


@attrs.frozen
class Span:
    """Start and end of a measurement, in UTC."""

    began: datetime.datetime
    ended: datetime.datetime


class Phase(enum.Enum):
    """The phase of a completion that a row measures."""

    PROMPT = "prompt"
    """Prefill."""
    GENERATION = "generation"
    """Decoding."""


@attrs.frozen
class Shape:
    """The workload of one row."""

    phase: Phase
    tokens: int
    """Tokens of each prompt, or tokens generated in each stream."""
    streams: int = 1
    """Sequences computed at the same time."""
    depth: int = 0
    """Prompt tokens before a measured generation."""

    @property
    def name(self) -> str:
        """The usual name of such a row: ``pp512``, ``tg128``, ``tg128 @ d4096``."""
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
    """One measured completion; times are seconds of one clock."""

    began: float
    first_token: float
    ended: float
    prompt_tokens: int
    """Computed prompt tokens; those from a cache do not count."""
    completion_tokens: int

    @property
    def first_token_seconds(self) -> float:
        """The time to the first token."""
        return self.first_token - self.began


def tokens_per_second(phase: Phase, streams: Sequence[StreamTimes]) -> float:
    """Return the speed of all streams of a run together; 0 where no time has passed.

    Prefill: all prompt tokens, from the first start to the last stream's first token. Decoding: the tokens after each
    stream's first, from the earliest first token to the last end.
    """
    if phase is Phase.PROMPT:
        tokens = sum(stream.prompt_tokens for stream in streams)
        seconds = max(stream.first_token for stream in streams) - min(stream.began for stream in streams)
    else:
        tokens = sum(max(0, stream.completion_tokens - 1) for stream in streams)
        seconds = max(stream.ended for stream in streams) - min(stream.first_token for stream in streams)
    return tokens / seconds if seconds > 0 else 0.0


@attrs.frozen
class Row:
    """The result for one shape, over its repeats."""

    shape: Shape
    repeats: int
    tokens_per_second: Spread
    """Speed of all streams together, over the repeats."""
    first_token_seconds: Spread
    """Time to the first token, over every stream of every repeat."""
    span: Span | None = None
    """All runs, the uncounted warm-up run included."""

    @classmethod
    def of(cls, shape: Shape, runs: Sequence[Sequence[StreamTimes]], span: Span | None = None) -> "Row":
        """Return the row of at least one run."""
        rates = [tokens_per_second(shape.phase, run) for run in runs]
        waits = [stream.first_token_seconds for run in runs for stream in run]
        return cls(shape, len(runs), Spread.of(rates), Spread.of(waits), span)

    @property
    def noisy(self) -> bool:
        """Whether its speed scatters too much to compare."""
        return self.tokens_per_second.noisy


@attrs.frozen
class Processor:
    """The processor of a machine."""

    name: str
    """The maker's name for it; empty when the system does not state it."""
    cores: int
    """Logical cores."""


@attrs.frozen
class Machine:
    """The measuring machine, without anything that identifies its owner."""

    system: str
    """Name and version of the operating system."""
    architecture: str
    processor: Processor
    memory_bytes: int | None
    """None when unknown."""
    on_cpu: bool
    """Whether models run on the CPU, for lack of a supported GPU."""
    matrix_library: str | None
    """The BLAS used on the CPU; None for the built-in one, and with a GPU."""
    load_before: float | None
    """Load of other programs before the benchmark, as a share of all cores; None when unknown."""
    versions: tuple[tuple[str, str], ...]
    """Name and version of Python and of each package that computes."""


BUSY_LOAD = 0.25
"""Load of other programs, as a share of all cores, from which a note says that they disturb the measurement."""


CACHED_SHARE = 0.1
"""Share of cached prompt tokens from which a note says that the server's cache shortens its times."""


@attrs.frozen
class StatedTimes:
    """Durations as the server reports them, in seconds; None where it does not."""

    load: float | None = None
    """Loading of the model; near zero when it was in memory."""
    prompt: float | None = None
    """Prefill."""
    generation: float | None = None
    """Decoding."""


@attrs.frozen
class StatedSpeeds:
    """Tokens a second by the server's own times, without queue and network: medians over requests."""

    prompt: float | None
    generation: float | None

    @classmethod
    def of(cls, completions: Sequence["RemoteCompletion"]) -> "StatedSpeeds | None":
        """Return the speeds of completions; None where the server states no times."""
        timed = [(completion, completion.stated) for completion in completions if completion.stated is not None]
        prompts = [_rate(completion.prompt_tokens, times.prompt) for completion, times in timed]
        generations = [_rate(completion.completion_tokens, times.generation) for completion, times in timed]
        speeds = cls(_median(prompts), _median(generations))
        return None if speeds.prompt is None and speeds.generation is None else speeds


def _rate(tokens: int | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens and seconds else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return percentile(known, 0.5) if known else None


@attrs.frozen
class RemoteCompletion:
    """One request to a server; times are seconds of one clock."""

    began: float
    ended: float
    first_token: float | None = None
    """None when no token came."""
    prompt_tokens: int | None = None
    """The server's count; None when it reports none."""
    completion_tokens: int | None = None
    """The server's count; None when it reports none."""
    cached_tokens: int | None = None
    """Prompt tokens that the server took from a cache; None when it reports none."""
    failure: str | None = None
    """Why the answer is missing or incomplete, in a few words, equal for equal reasons; None for success."""
    status: int | None = None
    """The HTTP status; None without a response."""
    stated: StatedTimes | None = None
    """The server's own times; None when it reports none."""
    text: str = attrs.field(default="", repr=False)
    """The answer, without reasoning and tool calls."""

    @property
    def inter_token_seconds(self) -> float | None:
        """The mean time between two tokens; None where their number is unknown or less than two."""
        if self.first_token is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.ended - self.first_token) / (self.completion_tokens - 1)


@attrs.frozen
class Percentiles:
    """Percentiles of a series of values."""

    p25: float
    p50: float
    p75: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles | None":
        """Return the percentiles of values; None without values."""
        return cls(*(percentile(values, share) for share in (0.25, 0.5, 0.75, 0.9, 0.99))) if values else None


@attrs.frozen
class Load:
    """The load of a server at one level."""

    streams: int
    """Concurrent requests."""
    prompt_words: int
    max_tokens: int


@attrs.frozen
class Level:
    """The result for one load.

    Token counts are sums over successful requests; None unless the server reported them for each. Percentiles are over
    successful requests.
    """

    load: Load
    requests: int
    failures: tuple[tuple[str, int], ...]
    """Reason and number of requests, the most frequent first."""
    seconds: float
    """From the start of the first request to the end of the last."""
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    first_token_seconds: Percentiles | None
    inter_token_seconds: Percentiles | None
    """Over the mean of each request."""
    end_to_end_seconds: Percentiles | None
    stated: StatedSpeeds | None = None
    """None where the server reports no times."""
    span: Span | None = None
    """All requests, the uncounted warm-up requests included."""

    @property
    def failed(self) -> int:
        """Requests without a complete answer."""
        return sum(count for _, count in self.failures)

    @property
    def succeeded(self) -> int:
        """Requests with a complete answer."""
        return self.requests - self.failed

    @property
    def ends_early(self) -> bool:
        """Whether answers are shorter than ``max_tokens``."""
        return self.completion_tokens is not None and self.completion_tokens < self.succeeded * self.load.max_tokens

    @property
    def cuts_prompts(self) -> bool:
        """Whether the server truncated prompts: they have fewer tokens than words, and a word is at least one token."""
        return self.prompt_tokens is not None and self.prompt_tokens < self.succeeded * self.load.prompt_words

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens of all streams together; None where the server does not count them."""
        if self.completion_tokens is None or self.seconds <= 0:
            return None
        return self.completion_tokens / self.seconds

    @property
    def requests_per_second(self) -> float:
        """Successful requests a second."""
        return self.succeeded / self.seconds if self.seconds > 0 else 0.0

    @classmethod
    def of(cls, load: Load, completions: Sequence[RemoteCompletion], span: Span | None = None) -> "Level":
        """Return the level of at least one request."""
        successes = [request for request in completions if request.failure is None]
        reasons = Counter(request.failure for request in completions if request.failure is not None)
        gaps = [request.inter_token_seconds for request in successes]
        return cls(
            load,
            len(completions),
            tuple(reasons.most_common()),
            max(request.ended for request in completions) - min(request.began for request in completions),
            _total([request.prompt_tokens for request in successes]),
            _total([request.completion_tokens for request in successes]),
            _total([request.cached_tokens for request in successes]),
            Percentiles.of([one.first_token - one.began for one in successes if one.first_token is not None]),
            Percentiles.of([gap for gap in gaps if gap is not None]),
            Percentiles.of([request.ended - request.began for request in successes]),
            StatedSpeeds.of(successes),
            span,
        )


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
