"""What a study does, from rows to conditions, as data: a TOML file or these classes.

rows[seed] -> maps[seed, name] -> choices of heads -> conditions -> measures -> report
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from biasgym_tl.biases.bias import Bias, list_biases, load_bias
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.files import read_text
from biasgym_tl.heads import as_heads
from biasgym_tl.hooks import check_steering
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.instructions import find_instruction
from biasgym_tl.protocol.sources import check_benchmarks, check_judge
from biasgym_tl.scoping.k_sweep import KS
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.steering.budget import BudgetSearch
from biasgym_tl.steering.factors import FactorSearch
from biasgym_tl.store import as_declared
from biasgym_tl.toml import read_toml

SLOTS = ("row", "targets", "untrained row", "shuffled corpus", "other bias")
"""What stands in the slot while heads are scored: the trained row, or for a control a target (no
injection), the row before training, or a row trained on shuffled text or on another bias."""
ROWS = ("alike", "shipped", "trained")
WAYS = {
    "top": ("map", "k", "share"), "overlap": ("map", "k", "share"), "factors": ("settings",),
    "budget": ("k", "settings"), "given": ("heads",),
}  # fmt: skip
"""How heads are chosen, and which fields of :class:`Choice` say so."""
MEASURES = ("all", "brief", "own answers", "answers")
MEANS = ("text", "targets")
"""What a mean is taken over: neutral text, or scoping prompts with fitting targets."""
OTHERS = {"rest": "the other biases of the protocol", "shipped": "all shipped ones"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How rows are made."""

    preset: str = "cpu"
    """``"cpu"`` or ``"paper"``: the settings of :class:`BiasInject` that ``settings`` change."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: str = "alike"
    """When a row that ships is taken. ``"alike"``: if it was trained in this very way;
    ``"shipped"``: also if its settings are others; ``"trained"``: never."""

    def check(self) -> None:
        """Refuse what could not be trained."""
        self.inject  # noqa: B018 - checks the settings
        _one_of("rows of the training", self.rows, ROWS)

    @property
    def inject(self) -> BiasInject:
        """The settings as a training takes them."""
        presets: dict[str, Any] = {"cpu": BiasInject.cpu, "paper": BiasInject}
        if self.preset not in presets:
            raise SettingError(f"preset must be one of {sorted(presets)}, got {self.preset!r}.")
        found: BiasInject = _made(presets[self.preset], BiasInject, self.settings, "training")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Map:
    """How heads are scored."""

    slot: str = "row"
    """One of ``SLOTS``."""
    n_prompts: int | None = None
    """Only the first scoping prompts; None: all."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of :class:`BiasScope`, without its seed."""

    def scope(self, seed: int) -> BiasScope:
        """The settings as an attribution takes them."""
        found: BiasScope = _made(BiasScope, BiasScope, {**self.settings, "seed": seed}, "map")
        return found

    def check(self, name: str) -> None:
        """Refuse what could not be scored."""
        _check_file_name(name)
        if "seed" in self.settings:
            raise SettingError(f"seed of the map {name!r} must be left to the protocol's seeds.")
        self.scope(0)
        _one_of(f"slot of the map {name!r}", self.slot, SLOTS)
        _at_least(f"n_prompts of the map {name!r}", self.n_prompts, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """How heads are chosen, for each bias, before anything is measured."""

    by: str = "top"
    """``"top"``: the highest of each row's map. ``"overlap"``: those that every seed has among its
    highest (the paper's). ``"factors"``, ``"budget"``: searched with the rows of all seeds.
    ``"given"``: ``heads``."""
    map: str = "direct"
    """Name of a map, for ``"top"`` and ``"overlap"``."""
    k: int | None = None
    """Heads, or heads that each seed nominates."""
    share: float | None = None
    """The same as a share of all heads of the model."""
    heads: str = ""
    """File of a ``Selection``, or names such as ``"L9H8,L3H1"``."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of :class:`FactorSearch` or :class:`BudgetSearch`."""

    def search(self) -> FactorSearch | BudgetSearch:
        """The search, for ``"factors"`` and ``"budget"``."""
        kind = FactorSearch if self.by == "factors" else BudgetSearch
        settings = self.settings if self.k is None else {**self.settings, "k": self.k}
        found: FactorSearch | BudgetSearch = _made(kind, kind, settings, "choice")
        return found

    def n_heads(self, of: int) -> int:
        """``k`` for a model of so many heads."""
        k = self.k if self.share is None else max(1, round(self.share * of))
        if k is None or not 1 <= k <= of:
            raise SettingError(f"k must be in 1..{of}, the number of heads of the model, got {k}.")
        return k

    def check(self, name: str, maps: Mapping[str, Map]) -> None:
        """Refuse what could not be chosen."""
        _check_file_name(name)
        _one_of(f"by of the choice {name!r}", self.by, WAYS)
        values, default = vars(self), vars(Choice())
        given = {key for key in values if values[key] != default[key]} - {"by"}
        if unused := sorted(given - {*WAYS[self.by]}):
            found = ", ".join(f"{key} = {values[key]!r}" for key in unused)
            raise SettingError(
                f"the choice {name!r} by {self.by!r} must be given only {list(WAYS[self.by])}, "
                f"got {found}."
            )
        if self.by in ("factors", "budget"):
            self.search()
        elif self.by == "given":
            if not self.heads:
                raise SettingError(f"heads of the choice {name!r} must be given, got none.")
            if Path(self.heads).suffix != ".json":
                as_heads(self.heads)
        else:
            _one_of(f"map of the choice {name!r}", self.map, maps)
            if (self.k is None) == (self.share is None):
                raise SettingError(
                    f"the choice {name!r} must have k or share, got {self.k} and {self.share}."
                )
            _at_least(f"k of the choice {name!r}", self.k, 1)
            if self.share is not None and not 0 < self.share <= 1:
                raise SettingError(f"share of {name!r} must lie in 0..1, got {self.share!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """A condition beside ``original`` and ``injected``."""

    choice: str = ""
    """Name of a choice of heads; empty: nothing is steered."""
    mode: str = "mean"
    """``"zero"``, ``"mean"`` or ``"scale"``."""
    name: str = ""
    """Default: ``"CHOICE, MODE"``, or ``"asked, INSTRUCTION"``."""
    factor: float | None = None
    """What heads keep, in the modes ``"mean"`` and ``"scale"``; default: what the choice says."""
    mean_over: str = "text"
    """One of ``MEANS``."""
    asked: str = ""
    """Name of an instruction around each request."""
    reinject: bool = False
    """With a new row, trained while the heads are steered."""
    all_seeds: bool = False
    """Also with the rows of the other seeds, as ``"NAME, seed 1"``, on the BiasToken alone."""
    random: int = 0
    """Random sets of its own mode and factors, measured in brief."""
    random_answers: int = 0
    """So many of the random sets also answer freely, for this bias."""
    draws: int = 0
    """Random sets of which only log-odds are measured, ``random`` included; 199 give p-values."""
    measures: str = "all"
    """One of ``MEASURES``: ``"brief"`` leaves out free answers, other biases and benchmarks, ``"own
    answers"`` adds the free answers for this bias to it, ``"answers"`` is free answers alone."""

    @property
    def label(self) -> str:
        """The name of the condition."""
        steered = f"{self.choice}, {self.mode}"
        return self.name or (steered if self.choice else f"asked, {self.asked}")

    def check(self, choices: Mapping[str, Choice]) -> None:
        """Refuse what could not be measured."""
        if self.choice:
            _one_of("choice of a condition", self.choice, choices)
            check_steering(self.mode, self.factor)
        elif not self.asked:
            raise SettingError(
                "a condition must name a choice of heads or what is asked, got none."
            )
        elif self.random or self.draws or self.reinject:
            raise SettingError(f"condition {self.label!r} must steer heads to have random ones.")
        if self.asked:
            find_instruction(self.asked)
        _one_of("mean_over of a condition", self.mean_over, MEANS)
        _one_of("measures of a condition", self.measures, MEASURES)
        if self.factor is not None and not math.isfinite(self.factor):
            raise SettingError(
                f"factor of the condition {self.label!r} must be a number, got {self.factor!r}."
            )
        for name in ("random", "random_answers", "draws"):
            _at_least(f"{name} of the condition {self.label!r}", getattr(self, name), 0)
        if self.random_answers > self.random:
            raise SettingError(
                f"random_answers of the condition {self.label!r} must be among its {self.random} "
                f"random sets, got {self.random_answers}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured in the conditions."""

    n_targets: int = 10
    """Held-out targets."""
    others: tuple[str, ...] = ()
    """Biases that the row was not trained on: log-odds and free answers. Names, or ``"rest"``: the
    other biases of the protocol, or ``"shipped"``: all that ship, about the same kind of target."""
    further: tuple[str, ...] = ()
    """More of them, of which only log-odds are measured."""
    benchmarks: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a benchmark -> file, folder or data set."""
    implicit: bool = True
    """Scenes that do not name the attribute, where some ship for the bias."""
    answers: bool = True
    """Free answers."""
    max_new_tokens: int = 48
    """Their length."""
    judge: str | None = None
    """Scores them: ``"local"``, or ``"api:MODEL"``."""

    def check(self) -> None:
        """Refuse what could not be measured."""
        _at_least("n_targets", self.n_targets, 1)
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        check_benchmarks(self.benchmarks)
        check_judge(self.judge)

    def other_biases(self, bias: Bias, names: tuple[str, ...], of: tuple[str, ...]) -> list[Bias]:
        """The others of a bias, about the same kind of target."""
        listed = [
            n for name in names for n in {"rest": of, "shipped": list_biases()}.get(name, (name,))
        ]
        loaded = [load_bias(name) for name in dict.fromkeys(listed)]
        special = set(names) & set(OTHERS)
        return [
            each
            for each in loaded
            if each.name != bias.name and (each.target_kind == bias.target_kind or not special)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Benefit and damage over the number of heads, on fitting data."""

    map: str = "direct"
    mode: str = "mean"
    """``"zero"`` or ``"mean"``."""
    ks: tuple[int, ...] = KS

    def check(self, maps: Mapping[str, Map]) -> None:
        """Refuse what could not be swept."""
        _one_of("map of a sweep", self.map, maps)
        _one_of("mode of a sweep", self.mode, ("zero", "mean"))
        if not self.ks or self.ks[0] < 1 or sorted(set(self.ks)) != list(self.ks):
            raise SettingError(f"ks of a sweep must rise from 1 or more, got {self.ks}.")


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
    """As in :func:`biasgym_tl.load_model`."""
    biases: tuple[str, ...] = ("late",)
    """Names of shipped biases, or paths of bias files."""
    seeds: tuple[int, ...] = (0,)
    """A row each. Conditions are those of the first unless they say otherwise."""
    rows: tuple[str, ...] = ()
    """Files of trained rows, one a seed, of one bias; default: shipped or trained."""
    training: Training = Training()
    maps: dict[str, Map] = dataclasses.field(default_factory=dict)
    choices: dict[str, Choice] = dataclasses.field(default_factory=dict)
    conditions: tuple[Steering, ...] = ()
    measures: Measured = Measured()
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

    def _check_parts(self) -> None:
        self.training.check()
        for name, each in self.maps.items():
            each.check(name)
        for name, choice in self.choices.items():
            choice.check(name, self.maps)
            if choice.by == "overlap" and len(self.seeds) < 2:
                raise SettingError(f"the choice {name!r} must have 2 seeds to overlap, got 1.")
        for condition in self.conditions:
            condition.check(self.choices)
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
    "training": Training, "maps": Map, "choices": Choice, "conditions": Steering,
    "measures": Measured, "sweeps": Sweep,
}  # fmt: skip
_OPEN = {Training: "settings", Map: "settings", Choice: "settings"}
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
            if key in ("maps", "choices"):
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


def list_protocols() -> list[str]:
    """Names of the shipped protocols."""
    return sorted(
        p.name.removesuffix(".toml") for p in _data().iterdir() if p.name.endswith("toml")
    )


def protocol_text(name: str) -> str:
    """A shipped protocol, or a file, as it is written.

    Raises:
        SettingError: there is no such protocol.
    """
    if Path(name).suffix == ".toml":
        return read_text(Path(name), "protocol", SettingError)
    if name not in list_protocols():
        raise SettingError(
            f"protocol must be one of {list_protocols()} or a .toml file, got {name!r}."
        )
    return str(_data().joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def load_protocol(name: str) -> Protocol:
    """Load a shipped protocol by its name, or a ``.toml`` file.

    Raises:
        SettingError: there is no such protocol, or a part of it is not valid.
    """
    values = read_toml(protocol_text(name), name)
    return Protocol.from_mapping({"name": Path(name).stem, **values}, name)


def _data() -> Any:
    return resources.files("biasgym_tl.protocol").joinpath("data")


def _made(make: Any, kind: type, settings: Mapping[str, Any], what: str) -> Any:
    """Made with settings of a class, whose names and types are checked."""
    try:
        return make(**as_declared(kind, settings))
    except StoreError as error:
        raise SettingError(
            f"settings of the {what} must be of {kind.__name__}: {error}."
        ) from error


def _check_file_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w. -]{0,59}", name):
        raise SettingError(
            f"names of maps and choices must be letters, digits, spaces, '.' and '-' (they name "
            f"files), got {name!r}."
        )


def _one_of(name: str, value: object, allowed: Any) -> None:
    if value not in allowed:
        raise SettingError(f"{name} must be one of {list(allowed)}, got {value!r}.")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise SettingError(f"{name} must be at least {least}, got {value!r}.")
