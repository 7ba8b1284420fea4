"""What a study does, from rows to conditions, as data: a TOML file or these classes.

rows[seed] -> maps[seed, name] -> choices of heads -> conditions -> measures -> report
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.protocol.parts import (
    Choice,
    Map,
    Measured,
    Sweep,
    Training,
)
from biasgym_tl.protocol.shipped import protocol_text
from biasgym_tl.protocol.steering import Rival, Steering
from biasgym_tl.store import as_declared
from biasgym_tl.toml import read_toml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """A whole study.

    Raises:
        SettingError: on construction, if a part of it is outside its range or names no other part.
        SteeringError: there is no such mode, or it does not go with the factor.
    """

    name: str = "own"
    about: str = ""
    """What it does, in a line."""
    model: str = "smollm2-135m-instruct"
    """As in :func:`biasgym_tl.load_model`, and so are:"""
    dtype: str = "float32"
    device: str | None = None
    device_map: str | None = None
    biases: tuple[str, ...] = ("late",)
    """Names of shipped biases, or paths of bias files."""
    seeds: tuple[int, ...] = (0,)
    """A row each. Conditions are those of the first unless they say otherwise."""
    rows: tuple[str, ...] = ()
    """Files of trained rows, one a seed, of one bias; default: shipped or trained."""
    training: Training = dataclasses.field(default_factory=Training)
    maps: dict[str, Map] = dataclasses.field(default_factory=dict)
    choices: dict[str, Choice] = dataclasses.field(default_factory=dict)
    rivals: dict[str, Rival] = dataclasses.field(default_factory=dict)
    conditions: tuple[Steering, ...] = ()
    measures: Measured = dataclasses.field(default_factory=Measured)
    sweeps: tuple[Sweep, ...] = ()

    def __post_init__(self) -> None:
        if not self.biases or not self.seeds:
            raise SettingError("a protocol must have at least one bias and one seed.")
        labels = ("original", "injected", *(condition.label for condition in self.conditions))
        for name, values in (
            ("biases", self.biases),
            ("seeds", self.seeds),
            ("names of conditions", labels),
            ("sweeps", tuple((sweep.map, sweep.mode) for sweep in self.sweeps)),
        ):
            if len(set(values)) < len(values):
                raise SettingError(f"{name} must be different ones, got {list(values)}.")
        if self.rows and (len(self.rows), 1) != (len(self.seeds), len(self.biases)):
            raise SettingError(
                f"rows must be one for each of {len(self.seeds)} seeds, of one bias, got "
                f"{len(self.rows)} for {len(self.biases)}."
            )
        self._check_parts()

    def injects(self, bias: Bias) -> bool:
        """Whether there are rows for a bias: not for one without a corpus, which the model is to
        hold by itself."""
        return bool(self.rows) or (self.training.rows != "none" and bool(bias.corpus))

    def rivals_of(self, bias: Bias) -> dict[str, Rival]:
        """By name, those that are made for a bias."""
        return {n: r for n, r in self.rivals.items() if r.natural or self.injects(bias)}

    def conditions_of(self, bias: Bias) -> tuple[Steering, ...]:
        """Those of a bias: not of a rival that is not made for it."""
        made = self.rivals_of(bias)
        return tuple(c for c in self.conditions if not c.rival or c.rival in made)

    def check_without_rows(self, bias: Bias) -> None:
        """Refuse what needs a row of a bias that has none.

        Raises:
            SettingError: a map, a sweep or a condition does; the message names it.
        """
        needy = [f"the map {n!r}" for n, m in self.maps.items() if m.slot != "targets"]
        needy += [f"the sweep of {sweep.map!r}" for sweep in self.sweeps]
        needy += [f"the condition {c.label!r}" for c in self.conditions if c.reinject]
        if needy:
            raise SettingError(
                f"{needy[0]} must have a row, and bias {bias.name!r} has none. Map its targets "
                '(slot = "targets"), or give a bias with a corpus.'
            )

    def _check_parts(self) -> None:
        self.training.check()
        for name, each in self.maps.items():
            each.check(name)
        for name, choice in self.choices.items():
            choice.check(name, self.maps)
            if choice.null == "other biases" and len(self.biases) < 2:
                raise SettingError(f"the choice {name!r} must have 2 biases, to leave one out.")
            if choice.by == "overlap" and len(self.seeds) < 2:
                raise SettingError(f"the choice {name!r} must have 2 seeds to overlap, got 1.")
        for name, rival in self.rivals.items():
            rival.check(name)
        for condition in self.conditions:
            condition.check(self.choices, self.rivals)
        self.measures.check()
        for sweep in self.sweeps:
            sweep.check(self.maps)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "protocol") -> Protocol:
        """Build it from what TOML or JSON gives.

        Raises:
            SettingError: there is no such key, or a value is of another type or outside its range.
        """
        try:
            return cls(**_declared(cls, values))
        except (StoreError, TypeError) as error:  # the second of what JSON has no word for
            raise SettingError(f"{source} must be a protocol, but: {error}.") from error


_PARTS: dict[str, type] = {
    "training": Training, "maps": Map, "choices": Choice, "rivals": Rival,
    "conditions": Steering, "measures": Measured, "sweeps": Sweep,
}  # fmt: skip
_OPEN = {Training: "settings", Map: "settings", Choice: "settings", Rival: "settings"}
"""Classes whose other keys are settings of what they call."""


def _declared(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a table as a class declares them, tables within it too."""
    if not isinstance(values, Mapping):
        raise TypeError(values)
    own = {field.name for field in dataclasses.fields(kind)}
    plain, found = dict(values), dict[str, Any]()
    if kind in _OPEN:
        rest = {key: plain.pop(key) for key in set(plain) - own}
        plain["settings"] = {**plain.get("settings", {}), **rest}
    for key in set(plain) & set(_PARTS) if kind is Protocol else ():
        part, table = _PARTS[key], plain.pop(key)
        try:
            if key in ("maps", "choices", "rivals"):
                found[key] = {name: part(**_declared(part, t)) for name, t in table.items()}
            elif key in ("conditions", "sweeps"):
                found[key] = tuple(part(**_declared(part, each)) for each in table)
            else:
                found[key] = part(**_declared(part, table))
        except (AttributeError, TypeError) as error:
            raise StoreError(
                f"{key} must be as in 'biasgym run --show demo', got {table!r}"
            ) from error
    return found | as_declared(kind, plain)


def load_protocol(name: str) -> Protocol:
    """Load a shipped protocol by its name, or a ``.toml`` file.

    Raises:
        SettingError: there is no such protocol, or a part of it is not valid.
    """
    values = read_toml(protocol_text(name), name)
    return Protocol.from_mapping({"name": Path(name).stem, **values}, name)
