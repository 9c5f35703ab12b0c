"""In-memory double of the progress: it keeps all reports.

progress = InMemoryProgress()
hub.fetch(plan, progress)
progress.finished                           # {"config.json": 2, …}: the bytes of each item at the last report
"""

from collections.abc import Mapping

from mlxk.application.ports.system import Progress


class InMemoryProgress(Progress):
    """Keeps the activities, the sizes of the last one, its last report, and the notes."""

    def __init__(self) -> None:
        self.activities: list[str] = []
        self.sizes: dict[str, int] = {}
        self.finished: dict[str, int] = {}
        self.notes: list[str] = []
        self.running = False

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        self.activities.append(activity)
        self.sizes, self.finished, self.running = dict(sizes), {}, True

    def advance(self, done: Mapping[str, int]) -> None:
        self.finished = dict(done)

    def end(self) -> None:
        self.running = False

    def note(self, message: str) -> None:
        self.notes.append(message)
