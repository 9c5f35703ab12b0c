"""The ``options`` of Ollama's requests: which are honoured, which have no effect here, and which are refused."""

from collections.abc import Mapping
from typing import Annotated, Any

import attrs

from mlxk.entrypoints.http.openai.sampling import Penalty, Seed, Share, Stop, register_sampling
from mlxk.entrypoints.http.requests.validation import FieldError, Range, StrictConverter, Unsupported

_OF_THE_RUNNER = Unsupported("the engine takes care of it")
_OLD_SAMPLING = Unsupported("is gone from Ollama, too")

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "repeat_last_n": Unsupported("penalties look at the whole answer; 0 switches them off", (0, -1)),
    "num_keep": Unsupported("a conversation is never cut"),
    "num_batch": _OF_THE_RUNNER,
    "num_gpu": _OF_THE_RUNNER,
    "main_gpu": _OF_THE_RUNNER,
    "num_thread": _OF_THE_RUNNER,
    "use_mmap": _OF_THE_RUNNER,
    "use_mlock": _OF_THE_RUNNER,
    "low_vram": _OF_THE_RUNNER,
    "numa": _OF_THE_RUNNER,
    "f16_kv": _OF_THE_RUNNER,
    "vocab_only": _OF_THE_RUNNER,
    "logits_all": _OF_THE_RUNNER,
    "embedding_only": _OF_THE_RUNNER,
    "draft_num_predict": _OF_THE_RUNNER,
    "mirostat": _OLD_SAMPLING,
    "mirostat_tau": _OLD_SAMPLING,
    "mirostat_eta": _OLD_SAMPLING,
    "tfs_z": _OLD_SAMPLING,
    "penalize_newline": _OLD_SAMPLING,
}
"""Options that are accepted and reported as ignored; the values beside them ask for nothing."""


@attrs.frozen(kw_only=True)
class Options:
    """The options that have an effect. What a request leaves out has the model's value, not Ollama's."""

    temperature: Annotated[float, Range(0, 5)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Range(-1)] | None = None
    """-1 and 0 keep all tokens."""
    min_p: Share | None = None
    typical_p: float | None = None
    """Refused unless 1, which changes nothing."""
    seed: Seed | None = None
    """-1 draws a random one."""
    stop: Stop = None
    repeat_penalty: Annotated[float, Range(0.1, 10)] | None = None
    repeat_last_n: int | None = None
    """0 switches the penalties off; they look at the whole answer otherwise."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_predict: Annotated[int, Range(-2)] | None = None
    """Most tokens of the answer; 0 and less set no limit."""
    num_ctx: Annotated[int, Range(0)] | None = None
    """Most tokens of prompt and answer together; 0 sets no limit beside the model's."""

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations, and of values that are not supported."""
        if self.typical_p not in {None, 1.0}:
            reason = "is not supported: there is no such sampling; leave it out, or use top_p or min_p"
            return [FieldError("options.typical_p", reason, unsupported=True)]
        return []

    @property
    def context_limit(self) -> int | None:
        """Most tokens of prompt and answer together; None for the model's window."""
        return self.num_ctx or None

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of a chat request that say the same."""
        penalties = {
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        if self.repeat_last_n == 0:
            penalties = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": None if self.seed == -1 else self.seed,
            "stop": self.stop,
            "max_tokens": self.num_predict if self.num_predict is not None and self.num_predict > 0 else None,
            **penalties,
        }


FIELD_NAMES: Mapping[str, str] = {
    **{name: f"options.{name}" for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    "repetition_penalty": "options.repeat_penalty",
    "presence_penalty": "options.presence_penalty",
    "frequency_penalty": "options.frequency_penalty",
    "max_tokens": "options.num_predict",
}
"""The paths of options, by the fields of a chat request."""


def register_options(converter: StrictConverter) -> None:
    """Register the unions of these fields with a converter."""
    register_sampling(converter)
