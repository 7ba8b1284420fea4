"""What a run of a protocol found."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from biasgym_tl.evaluation.report import Report
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.manifest import Manifest, results_fingerprint
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.stages import Heads
from biasgym_tl.rivals.intervention import Intervention
from biasgym_tl.scoping.damage import KSweep
from biasgym_tl.scoping.scores import HeadScores


class BiasResult(NamedTuple):
    """What was found of one bias."""

    rows: dict[int, BiasToken]
    """By seed."""
    maps: dict[str, dict[int, HeadScores]]
    """By name and seed."""
    choices: dict[str, dict[int, Heads]]
    """By name and seed; what rests on all seeds stands under the first."""
    sweeps: dict[str, KSweep]
    rivals: dict[str, Intervention] = {}  # noqa: RUF012 - never written to
    """By name, their dials not set."""
    reports: tuple[Report, ...] = ()
    """Of what was measured so far: none yet, or one."""

    @property
    def report(self) -> Report:
        """Of all conditions that were measured."""
        return self.reports[-1]


class ProtocolResult(NamedTuple):
    """What one run of a protocol found."""

    protocol: Protocol
    biases: dict[str, BiasResult]
    inputs: dict[str, str]
    """Fingerprints of all that was read."""

    def manifest(self) -> Manifest:
        """What was read and found."""
        numbers = [
            [
                {seed: row.row.tolist() for seed, row in found.rows.items()},
                {n: {s: m.values.tolist() for s, m in of.items()} for n, of in found.maps.items()},
                {n: sweep.benefit.tolist() for n, sweep in found.sweeps.items()},
                found.report.numbers(),
            ]
            for found in self.biases.values()
        ]
        return Manifest(
            command="run",
            settings=dataclasses.asdict(self.protocol),
            inputs=self.inputs,
            results=results_fingerprint(*numbers),
            threads=torch.get_num_threads(),
        )
