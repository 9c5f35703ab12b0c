"""A summary of an unexpected exception that is safe to report: its type and place; its message may quote text."""

import attrs


@attrs.frozen
class ExceptionSummary:
    """An exception's type and place."""

    kind: str
    """The name of its type."""
    place: str
    """The module and line that raised it."""

    @classmethod
    def of(cls, error: BaseException) -> "ExceptionSummary":
        """Summarize a caught exception; keeps no reference to its frames."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is None:
            return cls(type(error).__name__, "unknown")
        module = trace.tb_frame.f_globals.get("__name__", "unknown")
        return cls(type(error).__name__, f"{module}:{trace.tb_lineno}")
