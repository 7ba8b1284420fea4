"""How far a run of a protocol is, written down in the cache folder while it runs.

``CACHE/runs/HASH.json`` is there whole or not at all; a lock that the run holds says whether its
process lives, on any machine that shares the folder, and is free however the process ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biasgym_tl.errors import StoreError, first_line
from biasgym_tl.locks import is_locked, locked
from biasgym_tl.protocol.plan import STAGES, PlannedStep, span
from biasgym_tl.store import Result, cache_dir, digest

if TYPE_CHECKING:
    from biasgym_tl.protocol.protocol import Protocol

SECONDS = 1.0
"""Between two writings, at least."""
TRUST = 60.0
"""Seconds of work for which a plan is held to be right, whatever what is done took: some parts are
planned better than others, and the first are short."""
FINISHED = "finished"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A stage of one bias."""

    bias: str
    stage: str
    planned: float
    """Seconds that it was planned to take."""
    state: str = "left"
    """``"left"``, ``"now"`` or ``"done"``."""
    began: float | None = None
    """Since the epoch."""
    taken: float = 0.0
    """Seconds, once it is done."""
    made: int = 0
    """Steps that were made in it, not found finished; of workers: that are done."""
    of: int | None = None
    """Tasks of workers; otherwise not known beforehand."""

    @property
    def share(self) -> float:
        """How much of it is known to be done."""
        return 1.0 if self.state == "done" else self.made / self.of if self.of else 0.0

    def told(self, now: float) -> str:
        """What more there is to say, in words."""
        words = [f"{self.made} of {self.of} tasks"] if self.of is not None else []
        if self.made and self.of is None:
            words = [f"{self.made} steps made"]
        if self.state == "done":
            words.append(f"in {span(self.taken)}")
        elif self.state == "now":
            words.append(f"for {span(now - (self.began or now))}")
        if self.planned and self.state != "done":
            words.append(f"planned {span(self.planned)}")
        return ", ".join(["", *words])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord(Result):
    """How far a run is."""

    protocol: str
    model: str
    out: str
    """Folder of its results; empty for a run from Python that named none."""
    host: str
    began: float
    """Since the epoch."""
    saved: float
    """When this was written."""
    parts: tuple[Part, ...]
    """In the order in which they are done."""
    ended: str = ""
    """``"finished"``, or why it ended; empty for a run that goes on or was killed."""

    @property
    def left(self) -> float:
        """Seconds by its plan, and more and more at the speed of the parts that made something so
        far; what an earlier run finished is not known to be."""
        worked = [part for part in self.parts if part.made and part.began]
        done = sum(part.planned * part.share for part in worked)
        took = 0.0
        if worked:
            begun = [part.began for part in self.parts if part.state == "now" and not part.of]
            first = min(part.began or 0.0 for part in worked)
            took = min(filter(None, begun), default=self.saved) - first
        pace = (TRUST + took) / (TRUST + done)
        return pace * sum(part.planned * (1 - part.share) for part in self.parts)

    def told(self, lives: bool) -> str:
        """In words: what is done, under way and left."""
        now = time.time()
        lines = [
            f"{self.protocol} on {self.model}" + (f", results in {self.out}" if self.out else "")
        ]
        began = (
            f"Began {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.began))} on {self.host}"
        )
        if lives:
            lines.append(
                f"{began}, runs for {span(now - self.began)}: {span(self.left)} left, about."
            )
        else:
            last = f"last heard of {span(now - self.saved)} ago"
            lines.append(f"{began}, {self.ended or 'stopped: its process is gone'}, {last}.")
        for part in self.parts:
            lines.append(f"  {part.state:>4}  {part.bias}: {part.stage}{part.told(now)}")
        if not lives and self.ended != FINISHED:
            lines.append("What is done is kept: run the same command to go on.")
        return "\n".join(lines)


class Recorder:
    """Keeps the record of a run, and writes it now and then."""

    def __init__(self, record: RunRecord, path: Path | None) -> None:
        """Of a run that begins; without a path nothing is written."""
        self.record, self.path, self.written = record, path, 0.0
        self.parts = {(part.bias, part.stage): part for part in record.parts}
        self.save(at_once=True)

    def begins(self, bias: str, stage: str) -> str | None:
        """A stage begins; what was under way is done.

        Returns:
            What to say: which step of how many it is, and what is left.
        """
        if (bias, stage) not in self.parts:
            return None
        self._all_done()
        self._change(bias, stage, state="now", began=time.time())
        self.save(at_once=True)
        biases = list(dict.fromkeys(name for name, _ in self.parts))
        stages = [each for (name, each), part in self.parts.items() if name == bias if part.planned]
        if stage not in stages:
            return None
        which = f" ({biases.index(bias) + 1} of {len(biases)})" if len(biases) > 1 else ""
        where = f"{bias}{which}: step {stages.index(stage) + 1} of {len(stages)}, {stage}"
        left = span(self.snapshot().left)
        return f"{where}; about {left} left, less what an earlier run finished"

    def step(self) -> None:
        """A step was made in the stage that is under way."""
        for key, part in self.parts.items():
            if part.state == "now":
                self._change(*key, made=part.made + 1)
        self.save()

    def expects(self, planned: Mapping[tuple[str, str], float]) -> None:
        """Workers make all steps first, so many seconds' worth of each stage; then the run finds
        them."""
        found = {(b, s): Part(bias=b, stage=s, planned=time) for (b, s), time in planned.items()}
        rest = {key: dataclasses.replace(part, planned=0.0) for key, part in self.parts.items()}
        self.parts = found | rest

    def counts(self, bias: str, stage: str, done: int, of: int) -> None:
        """So many tasks of a stage are done by workers."""
        if (bias, stage) not in self.parts:
            return
        began = self.parts[bias, stage].began or time.time()
        self._change(bias, stage, made=done, of=of, began=began, state="now")
        if done == of:
            self._done(bias, stage)
        self.save()

    def ended(self, how: str) -> None:
        """The run ends."""
        if how == FINISHED:
            self._all_done()
        self.record = dataclasses.replace(self.record, ended=how)
        self.save(at_once=True)

    def save(self, *, at_once: bool = False) -> None:
        """Write it, unless that was done just now; a run does not end because of it."""
        if self.path and (at_once or time.monotonic() - self.written >= SECONDS):
            self.written = time.monotonic()
            with contextlib.suppress(OSError):
                self.snapshot().save(self.path)

    def snapshot(self) -> RunRecord:
        """As it is now."""
        parts = tuple(self.parts.values())
        return dataclasses.replace(self.record, parts=parts, saved=time.time())

    def _all_done(self) -> None:
        for key, part in self.parts.items():
            if part.state == "now":
                self._done(*key)

    def _done(self, bias: str, stage: str) -> None:
        began = self.parts[bias, stage].began or time.time()
        self._change(bias, stage, state="done", taken=time.time() - began)

    def _change(self, bias: str, stage: str, **changes: Any) -> None:
        self.parts[bias, stage] = dataclasses.replace(self.parts[bias, stage], **changes)


@contextlib.contextmanager
def recorded(
    protocol: Protocol, out: Path | None, planned: Iterable[PlannedStep]
) -> Iterator[Recorder]:
    """Context in which a run is recorded. Of two runs at once with one folder of results, or of one
    protocol and no folder, the first is: the other goes on unrecorded."""
    where = str(out.resolve()) if out else ""
    path = _folder() / f"{digest([where or dataclasses.asdict(protocol)])}.json"
    now = time.time()
    record = RunRecord(
        protocol=protocol.name,
        model=protocol.model,
        out=where,
        host=platform.node(),
        began=now,
        saved=now,
        parts=_parts(protocol, planned),
    )
    with locked(path, wait=1.0) as ours:
        recorder = Recorder(record, path if ours else None)
        try:
            yield recorder
        except BaseException as error:
            recorder.ended(first_line(error))
            raise
        recorder.ended(FINISHED)


def _parts(protocol: Protocol, planned: Iterable[PlannedStep]) -> tuple[Part, ...]:
    seconds: dict[tuple[str, str], float] = {}
    for step in planned:
        seconds[step.bias, step.stage] = seconds.get((step.bias, step.stage), 0.0) + step.seconds
    biases = dict.fromkeys(bias for bias, _ in seconds)
    if protocol.measures.judge:  # takes what is not planned
        seconds |= {(bias, STAGES[-1]): 0.0 for bias in biases}
    order = sorted(seconds, key=lambda key: (list(biases).index(key[0]), STAGES.index(key[1])))
    return tuple(Part(bias=b, stage=s, planned=seconds[b, s]) for b, s in order)


def known_runs() -> list[tuple[RunRecord, bool]]:
    """Records in the cache folder, the latest first, and whether the process of each lives; those
    that cannot be read, such as of another version, are left out."""
    found = []
    for path in _folder().glob("*.json"):
        with contextlib.suppress(StoreError):
            found.append((RunRecord.load(path), is_locked(path)))
    return sorted(found, key=lambda each: -each[0].began)


def _folder() -> Path:
    return cache_dir() / "runs"
