"""How fast machines compute and how much they hold: this one, or a GPU by its data sheet."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

REACHED = 0.6
"""Of the speed of one large product of matrices, what a model with hooks reaches: measured on one
core with two models, assumed of GPUs."""
LAYER = 1e-3
"""Seconds that Python takes to start the parts of a layer with their hooks."""
GPUS = {
    "T4": (8.1, 320, 15.0),
    "L4": (30.3, 300, 22.5),
    "A10G": (31.2, 600, 22.5),
    "RTX-3090": (35.6, 936, 24.0),
    "RTX-4090": (82.6, 1008, 24.0),
    "L40S": (91.6, 864, 45.0),
    "A100-40GB": (19.5, 1555, 40.0),
    "A100-80GB": (19.5, 2039, 80.0),
    "H100": (66.9, 3350, 79.6),
    "H200": (66.9, 4800, 140.4),
}
"""By name, from data sheets: dense fp32 (TFLOP/s, without tensor cores, which torch does not use
for fp32 by itself), memory bandwidth (GB/s), and memory that can be had (GiB)."""


class Machine(NamedTuple):
    """What it does and holds."""

    name: str
    memory: float
    """Bytes."""
    flops: float
    """Operations in fp32 a second, in a model."""
    bandwidth: float
    """Bytes of weights read a second."""
    measured: bool
    """Here and now; otherwise predicted from a data sheet."""


def gpu(name: str) -> Machine:
    """One of :data:`GPUS`, never measured."""
    tera, giga, memory = GPUS[name]
    return Machine(
        name, memory * 2**30, tera * 1e12 * REACHED, giga * 1e9 * REACHED, measured=False
    )


def this_machine(device: str | None = None) -> Machine:
    """The machine of this process, by a moment's trial on a device; default: a GPU if there is one.

    Threads count as torch uses them, and what else runs on the machine does not.

    Raises:
        SettingError: torch cannot use the device here.
    """
    import torch

    from biasgym_tl.model import check_device

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    place = torch.device(device)
    on_gpu = place.type == "cuda"
    a, row = torch.rand(1024, 1024, device=place), torch.rand(1, 4096, device=place)
    weight = torch.rand(4096, 8192, device=place)  # more than caches hold

    def clock() -> float:
        if on_gpu:
            torch.cuda.synchronize(place)
            return time.perf_counter()
        return time.process_time() / torch.get_num_threads()

    def seconds(job: Callable[[], object]) -> float:
        job()
        start, n = clock(), 0
        while (spent := clock() - start) < 0.15:
            job()
            n += 1
        return spent / n

    flops, read = (
        2 * 1024**3 / seconds(lambda: a @ a),
        weight.nbytes / seconds(lambda: row @ weight),
    )
    name, memory = "this machine", _physical_memory()
    if on_gpu:
        name = torch.cuda.get_device_name(place)
        memory = float(torch.cuda.get_device_properties(place).total_memory)
    return Machine(name, memory, flops * REACHED, read, measured=True)


def _physical_memory() -> float:
    """Bytes; no bound where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf
