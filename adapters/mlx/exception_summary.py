"""What may be said of a failure nobody foresaw: its kind and its place, never its text, which may quote a prompt."""

import attrs


@attrs.frozen
class ExceptionSummary:
    """An unexpected exception, described."""

    kind: str
    """Its type's name."""
    place: str
    """The module and line that raised it."""

    @classmethod
    def of(cls, error: BaseException) -> "ExceptionSummary":
        """Describe an exception that was caught; its frames are not kept."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is None:
            return cls(type(error).__name__, "unknown")
        module = trace.tb_frame.f_globals.get("__name__", "unknown")
        return cls(type(error).__name__, f"{module}:{trace.tb_lineno}")
