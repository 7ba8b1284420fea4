"""Steps of a protocol made by workers of a Ray cluster, into a store that all of them share.

Names of tasks cross the network and nothing else: what is made stays in the cache folder, where the
run finds it afterwards. So a run with workers is the run without, and whoever dies loses only what
was in the making.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import random
import socket
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from biasgym_tl.errors import ExtraError, SettingError, StoreError, first_line
from biasgym_tl.progress import Bar, bar
from biasgym_tl.protocol.chain import Opened, Running, open_protocol
from biasgym_tl.protocol.plan import plan
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.record import Recorder
from biasgym_tl.protocol.tasks import STAGES, Tasks, stage_of
from biasgym_tl.store import cache_dir

MOST_DEATHS = 10
"""Workers that may die of one task before the run ends."""


class _Task(NamedTuple):
    """What a worker is asked for."""

    bias: str = ""
    stage: str = ""
    """Empty: only to get ready."""
    name: str | None = None
    """None: the names of all tasks of the stage."""


class _Done(NamedTuple):
    """What it answers."""

    names: tuple[str, ...]
    made: bool
    """Whether anything was made, not found."""


@dataclasses.dataclass
class Worker:
    """A process with its own model. It asks no API, and computes with one thread."""

    protocol: Protocol
    inputs: Mapping[str, str]
    """What it must read: the same as the process that it works for."""
    folder: str
    """Where relative paths begin."""
    cache: str
    mark: str
    """A file that is in the cache folder meanwhile."""

    @cached_property
    def tasks(self) -> Tasks:
        """Those of the protocol, once it is opened."""
        torch.set_num_threads(1)
        with contextlib.suppress(OSError):  # what is missing then is said with its path
            os.chdir(self.folder)
        os.environ["BIASGYM_CACHE"] = self.cache
        if not Path(self.mark).exists():
            raise StoreError(
                f"cache folder must be one that all nodes share, got {self.cache!r}, which "
                f"{platform.node()} does not. Set BIASGYM_CACHE to a folder that they share."
            )
        opened = open_protocol(self.protocol, Running(progress=False))
        other = [name for name in self.inputs if opened.inputs.get(name) != self.inputs[name]]
        if other:
            raise SettingError(
                f"inputs of a worker must be those of the run, got other {other} on "
                f"{platform.node()}. Install the same versions and data there."
            )
        return Tasks(opened)

    def do(self, task: _Task) -> _Done:
        """Do one task, or list those of a stage."""
        tasks = self.tasks
        if not task.stage:
            return _Done((), made=False)
        listed = tasks.of(task.bias, task.stage)
        if task.name is None:
            return _Done(tuple(listed), made=False)
        made = tasks.opened.steps.made
        before = len(made)
        listed[task.name]()
        return _Done((), made=len(made) > before)


@dataclasses.dataclass(frozen=True)
class OnRay:
    """Has the steps of a protocol made on a Ray cluster: ``Running(ahead=OnRay())``.

    A worker takes a CPU, and a GPU where the model of this process is on one. As the workers do,
    this process computes with one thread from now on: with another number, sums could differ in
    their last bits. What asks an API (a judge) is left to the run after it, in this process.

    Raises:
        ExtraError: on construction, if Ray is not installed.
        SettingError: on construction, if nothing answers at the address.
    """

    address: str | None = None
    """``"HOST:PORT"`` of its head; None: the cluster of this machine, or else one for this run."""

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise ExtraError(
                "a run on Ray needs the package ray, which is not installed. "
                "Run: pip install 'biasgym-tl[ray]'"
            )
        if self.address is not None:
            host, _, port = self.address.rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, ValueError, OverflowError) as error:
                raise SettingError(
                    f"address must be HOST:PORT of a Ray cluster, got {self.address!r} "
                    f"({first_line(error)}). Start one: ray start --head --port 6379"
                ) from error
        torch.set_num_threads(1)

    def __call__(self, opened: Opened, recorder: Recorder) -> None:
        """Make the steps; ``recorder`` is told how far they are.

        Raises:
            SettingError: Ray cannot be started or joined, or a worker reads other data or dies
                again and again; else what a task raises.
            StoreError: a node does not share the cache folder.
        """
        import ray

        measures = dataclasses.replace(opened.protocol.measures, judge=None)
        protocol = dataclasses.replace(opened.protocol, measures=measures)
        planned = plan(protocol)
        seconds = defaultdict[tuple[str, str], float](float)
        for step in planned.steps:
            seconds[step.bias, stage_of(step)] += step.seconds
        cfg = opened.model.cfg
        n_gpus = cfg.n_devices if torch.device(cfg.device).type == "cuda" else 0
        recorder.expects({(bias, _by(stage)): time for (bias, stage), time in seconds.items()})
        cache_dir().mkdir(parents=True, exist_ok=True)
        with _cluster(self.address), tempfile.NamedTemporaryFile(dir=cache_dir()) as mark:
            memory = int(planned.memory)
            kind = ray.remote(num_cpus=1, num_gpus=n_gpus, memory=memory)(Worker)
            given = (protocol, opened.inputs, os.getcwd(), str(cache_dir()), mark.name)
            most = _places(n_gpus, memory)
            on = f"{most * n_gpus} GPUs" if n_gpus else f"{most} CPUs"
            opened.running.say(f"Ray: workers for {on}")
            with bar(sum(seconds.values()), "on Ray", progress=opened.running.progress) as shown:
                crew = _Crew(partial(kind.remote, *given), most, seconds, shown, recorder.counts)
                crew.work([bias.name for bias in opened.given.biases])


def _by(stage: str) -> str:
    """What a stage is called in the record of a run, whose own come after it."""
    return f"workers: {stage}"


def _places(n_gpus: int, memory: int) -> int:
    """How many workers of so many GPUs the nodes could hold, also by CPUs and memory."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": 1, "GPU": n_gpus, "memory": memory}
    found = (min(n.get(kind, 0) // k for kind, k in wanted.items() if k) for n in nodes)
    if (places := int(sum(map(int, found)))) < 1:
        raise SettingError(
            f"a node of the Ray cluster must have {f'{n_gpus} GPUs' if n_gpus else 'a CPU'} and "
            f"{memory / 2**30:.1f} GB of memory for a worker, got {nodes}. Start Ray on such a one."
        )
    return places


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connected to Ray, unless it was before."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise SettingError(
            f"Ray must start here, or be joined at the address, got {address!r} "
            f"({first_line(error)}). "
            + (
                "Does it ask for a token (export RAY_AUTH_MODE=token)?"
                if address
                else "Start it by hand: ray start --head --port 6379"
            )
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


class _Crew:
    """Workers, and tasks on their way to them."""

    def __init__(
        self,
        start: Callable[[], Any],
        most: int,
        seconds: Mapping[tuple[str, str], float],
        shown: Bar,
        counts: Callable[[str, str, int, int], None],
    ) -> None:
        """At most so many workers, each begun by ``start``; ``counts`` is told of each stage how
        many of its tasks are done."""
        self.start, self.most, self.seconds, self.shown = start, most, seconds, shown
        self.counts = counts
        self.waiting: deque[_Task] = deque()
        self.asked: dict[Any, tuple[Any, _Task]] = {}
        """By the reference of its answer, whom it was asked of."""
        self.free: list[Any] = []
        self.left: Counter[str] = Counter()
        """By bias, tasks of its stage that are not done."""
        self.of: dict[str, int] = {}
        """By bias, all of them."""
        self.share: dict[tuple[str, str], float] = {}
        """Seconds that a task of a stage is planned to take."""
        self.deaths: Counter[_Task] = Counter()

    def work(self, biases: Sequence[str]) -> None:
        """Do every task, stage by stage of each bias."""
        import ray

        self.waiting.extend(_Task(bias, next(iter(STAGES))) for bias in biases)
        try:
            while self.waiting or any(task.stage for _, task in self.asked.values()):
                self._ask()
                (answer,), _ = ray.wait(list(self.asked))
                worker, task = self.asked.pop(answer)
                try:
                    done = ray.get(answer)
                except ray.exceptions.RayActorError as error:
                    self._died(task, error)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause or error from None
                else:
                    self.free.append(worker)
                    self._done(task, done)
        finally:
            for worker in (*self.free, *(worker for worker, _ in self.asked.values())):
                ray.kill(worker)

    def _ask(self) -> None:
        """Give tasks to who is free, and begin as many workers as can be of use."""
        while self.free and self.waiting:
            self._send(self.free.pop(), self.waiting.popleft())
        beginning = sum(not task.stage for _, task in self.asked.values())
        places = self.most - len(self.asked) - len(self.free)
        for _ in range(min(places, len(self.waiting) - beginning)):
            self._send(self.start(), _Task())

    def _send(self, worker: Any, task: _Task) -> None:
        self.asked[worker.do.remote(task)] = worker, task

    def _died(self, task: _Task, error: Exception) -> None:
        """Have a task done by another worker; the node of this one may be gone for good."""
        self.deaths[task] += 1
        if self.deaths[task] >= MOST_DEATHS:
            raise SettingError(
                f"a worker must survive {' '.join(map(str, filter(None, task))) or 'its start'}, "
                f"but {MOST_DEATHS} did not ({first_line(error)}). Is the memory of a node too "
                "small? Start Ray there with fewer --num-cpus."
            ) from error
        if task.stage:
            self.waiting.appendleft(task)

    def _done(self, task: _Task, done: _Done) -> None:
        """What follows from a task that is done."""
        self.deaths.pop(task, None)
        if not task.stage:
            if not self.share:
                self.shown.unpause()  # what is left does not rest on how long models take to load
            return
        key = task[:2]
        if task.name is None:
            # In an order of its own: a second run on the same store begins elsewhere.
            names = random.sample(done.names, len(done.names))
            self.waiting.extend(task._replace(name=name) for name in names)
            self.left[task.bias] = self.of[task.bias] = len(names)
            self.share[key] = self.seconds[key] / (len(names) or 1)
        else:
            self.left[task.bias] -= 1
            (self.shown.update if done.made else self.shown.found)(self.share[key])
        of = self.of[task.bias]
        self.counts(task.bias, _by(task.stage), of - self.left[task.bias], of)
        if not self.left[task.bias]:
            later = list(STAGES)[list(STAGES).index(task.stage) + 1 :]
            self.waiting.extend(_Task(task.bias, stage) for stage in later[:1])
