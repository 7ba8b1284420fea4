"""What torch's waiting threads cost: a direct map with and without OMP_WAIT_POLICY=PASSIVE.

python tests/benchmarks/waiting.py [pairs]

On a quiet machine and beside other work (one busy process a core), in turn A B A B …: the ratio of
seconds with the policy to seconds without, whose threads spin while they wait.
"""

import contextlib
import os
import statistics
import subprocess
import sys

CODE = """
import time
import torch
from biasgym_tl import BiasScope, load_bias, load_model, load_token
model, bias, token = load_model("smollm2-135m-instruct"), load_bias("late"), load_token("late")
start = time.perf_counter()
BiasScope().attribute(model, bias, token)
print(time.perf_counter() - start)
"""
BUSY = "while True: pass"


def seconds(policy):
    """Of one map in a process of its own; torch is imported before the package."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OMP", "GOMP"))}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE], env={**env, **policy},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(found.stdout.split()[-1])


@contextlib.contextmanager
def busy(n):
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def main(pairs=7):
    for n in (0, 1, os.cpu_count()):
        with busy(n):
            times = [(seconds({"OMP_WAIT_POLICY": "PASSIVE"}), seconds({})) for _ in range(pairs)]
        ratios = sorted(with_it / without for with_it, without in times)
        waiting, spinning = (statistics.median(each) for each in zip(*times, strict=True))
        print(
            f"beside {n} busy processes: {waiting:.1f} s with, {spinning:.1f} s without; ratio "
            f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
