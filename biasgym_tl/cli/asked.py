"""What options ask of a protocol, for every command that takes one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biasgym_tl.biases.bias import load_bias
from biasgym_tl.cli.app import find_model
from biasgym_tl.cli.options import (
    Benchmarks,
    Device,
    DeviceMap,
    Dtype,
    JudgeName,
    Train,
    named_sources,
)

if TYPE_CHECKING:
    from biasgym_tl.protocol.protocol import Protocol

OtherModel = Annotated[str | None, typer.Option(help="Another model than the protocol's.")]
OtherBiases = Annotated[
    list[str] | None, typer.Option(help="Other biases than the protocol's; repeat.")
]
Seeds = Annotated[int | None, typer.Option(help="Rows a bias: seeds 0, 1, ...")]
Paragraphs = Annotated[int | None, typer.Option(help="Training paragraphs, at most.")]


@dataclasses.dataclass(frozen=True)
class Asked:
    """Options that change a protocol; those that were not given change nothing."""

    model: OtherModel = None
    dtype: Dtype = None
    device: Device = None
    device_map: DeviceMap = None
    bias: OtherBiases = None
    seeds: Seeds = None
    paragraphs: Paragraphs = None
    benchmark: Benchmarks = None
    judge: JudgeName = None
    train: Train = False

    def check(self) -> None:
        """Refuse names of nothing, before anything heavy is imported."""
        for each in self.bias or ():
            load_bias(each)
        if self.model:
            find_model(self.model)

    def changed(self, protocol: Protocol) -> Protocol:
        """The protocol with what was given in place of its own."""
        return _changed(
            protocol,
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            biases=self.bias,
            seeds=None if self.seeds is None else range(self.seeds),
            training={
                "n_paragraphs": self.paragraphs, "rows": "trained" if self.train else None,
            },
            measures={"benchmarks": named_sources(self.benchmark) or None, "judge": self.judge},
        )  # fmt: skip


def with_asked(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Asked`, which it takes as its last argument."""
    ours = inspect.signature(Asked, eval_str=True).parameters
    *own, _ = inspect.signature(command, eval_str=True).parameters.values()

    @wraps(command)
    def run(**given: Any) -> None:
        asked = Asked(**{name: given.pop(name) for name in ours})
        command(**given, asked=asked)

    parameters = [*ours.values(), *own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def given_options(options: Mapping[str, Any]) -> list[str]:
    """Names of those that were given."""
    return [f"--{name.replace('_', '-')}" for name, value in options.items() if value]


def _changed(protocol: Protocol, **given: Any) -> Protocol:
    changes: dict[str, Any] = {}
    for key, value in given.items():
        own = getattr(protocol, key)
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if v is not None}
            fields = {field.name for field in dataclasses.fields(own)}
            rest = {k: kept.pop(k) for k in set(kept) - fields}
            if rest:
                kept["settings"] = {**own.settings, **rest}
            changes[key] = dataclasses.replace(own, **kept)
        elif value is not None:
            changes[key] = value if isinstance(value, str) else tuple(value)
    found: Protocol = dataclasses.replace(protocol, **changes)
    return found
