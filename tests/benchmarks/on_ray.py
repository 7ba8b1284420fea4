"""What a run on Ray takes beside its steps, and what a second worker is worth.

    python tests/benchmarks/on_ray.py [speed]

Of steps that do nothing: milliseconds each, and how much the process that hands them out grows.
Then 12 rows and 36 maps of SmolLM2-135M-Instruct, all small, with one worker and with two, in empty
stores.
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from peak import watched_memory

from biasgym_tl import Protocol, run_protocol
from biasgym_tl.progress import bar
from biasgym_tl.protocol.chain import Opened, Running
from biasgym_tl.protocol.on_ray import OnRay, _Crew, _Done, _Task
from biasgym_tl.protocol.parts import Map, Measured, Training
from biasgym_tl.protocol.record import Recorder
from biasgym_tl.protocol.tasks import STAGES

STEPS = (100, 100, 1000, 5000, 10_000)
ROWS = Protocol(
    biases=("late", "math", "spicy-food", "bad-driving"),
    seeds=(0, 1, 2),
    training=Training(
        rows="trained", settings={"epochs": 2, "n_paragraphs": 16, "choose_by": "last"}
    ),
    maps={
        "direct": Map(n_prompts=24),
        "targets": Map(slot="targets", n_prompts=24),
        "patching": Map(settings={"method": "attribution_patching"}, n_prompts=24),
    },
    measures=Measured(n_targets=1, n_facts=1, implicit=False, off_target=False, answers=False),
)


class Pretended:
    """A worker whose steps do nothing."""

    def __init__(self, n: int) -> None:
        self.n = n

    def do(self, task: _Task) -> _Done:
        listed = task.name is None and task.stage == next(iter(STAGES))
        return _Done(tuple(map(str, range(self.n))) if listed else (), made=True)


def overhead() -> None:
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    kind = ray.remote(num_cpus=1)(Pretended)
    began = 0.0
    for n in STEPS:  # the first time, workers begin
        seconds = defaultdict(lambda: 1.0)
        with watched_memory() as memory, bar(n, "steps", progress=False) as shown:
            start = time.perf_counter()
            _Crew(lambda n=n: kind.remote(n), 2, seconds, shown, lambda *given: None).work(["bias"])
            took = time.perf_counter() - start
        grown = (memory.most - memory.before) / 2**20
        each = 1000 * (took - began) / (n - STEPS[0]) if n > STEPS[0] else 0
        began = began if each else took
        print(f"{n:6} steps: {took:5.1f} s, {each:.1f} ms each beyond {STEPS[0]}, "
              f"{grown:.1f} MiB more", flush=True)  # fmt: skip
    ray.shutdown()


def speed(n_workers: int) -> tuple[float, float]:
    """Seconds on Ray, and of them those from the first file in the store to the last."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["BIASGYM_CACHE"] = cache
        ray.init("local", num_cpus=n_workers, include_dashboard=False, logging_level="ERROR")
        took = []

        def ahead(opened: Opened, recorder: Recorder) -> None:
            start = time.perf_counter()
            OnRay()(opened, recorder)
            took.append(time.perf_counter() - start)

        run_protocol(ROWS, Running(progress=False, ahead=ahead))
        ray.shutdown()
        written = [path.stat().st_mtime for path in Path(cache, "steps").glob("[!.]*")]
        return took[0], max(written) - min(written)


def main() -> None:
    if "speed" not in sys.argv[1:]:
        overhead()
    alone, both = speed(1), speed(2)
    for name, one, two in zip(("in all", "first to last step"), alone, both, strict=True):
        print(f"{name}: one worker {one:.0f} s, two {two:.0f} s, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
