"""Where a run is: which step of how many, and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from biasgym_tl.protocol.plan import PlannedStep, span

LEAST = 2.0
"""Seconds that a step must be planned to take to say how fast the machine is."""


class Course:
    """Counts the steps of a run. What is left is what is planned, at the speed of the steps so far
    that found nothing finished by an earlier run."""

    def __init__(
        self, biases: tuple[str, ...], planned: tuple[PlannedStep, ...], n_made: Callable[[], int]
    ) -> None:
        """Of biases by their names; ``n_made`` is how much was made, not read back, so far."""
        self.biases, self.n_made = biases, n_made
        self.seconds: dict[tuple[str, str], float] = {}
        for step in planned:
            key = step.bias, step.stage
            self.seconds[key] = self.seconds.get(key, 0.0) + step.seconds
        self.planned = self.taken = 0.0
        self.now: tuple[str, str] | None = None
        self.before = (0.0, 0)

    def begins(self, bias: str, stage: str) -> str | None:
        """What to say as a stage begins; None of one that has nothing to do."""
        self._ended()
        if (bias, stage) not in self.seconds:
            return None
        self.now, self.before = (bias, stage), (time.perf_counter(), self.n_made())
        stages = [each for name, each in self.seconds if name == bias]
        left = list(self.seconds.values())[list(self.seconds).index(self.now) :]
        pace = self.taken / self.planned if self.planned else 1.0
        which = f" ({self.biases.index(bias) + 1} of {len(self.biases)})"
        where = f"{bias}{which if len(self.biases) > 1 else ''}: step "
        where += f"{stages.index(stage) + 1} of {len(stages)}, {stage}"
        return f"{where}; about {span(sum(left) * pace)} left, less what an earlier run finished"

    def _ended(self) -> None:
        since, n_made = self.before
        if self.now and self.n_made() > n_made and self.seconds[self.now] >= LEAST:
            self.planned += self.seconds[self.now]
            self.taken += time.perf_counter() - since
