"""What the engine has done since it began."""

import attrs


@attrs.define
class Tally:
    """Counters; written on the owner thread, readable from any."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ended: int = 0
    failed: int = 0
