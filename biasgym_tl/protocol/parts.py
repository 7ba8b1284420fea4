"""The parts of a protocol: training, maps, choices of heads, measures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biasgym_tl.allowed import MODES, PRESETS, check_benchmarks, check_judge
from biasgym_tl.biases.bias import Bias, list_biases, load_bias
from biasgym_tl.biases.shuffle import shuffled, with_random_words
from biasgym_tl.errors import SettingError, StoreError, check_at_least, check_one_of
from biasgym_tl.heads import as_heads
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.protocol.sources import next_bias
from biasgym_tl.scoping.damage import KS
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.steering.budget import BudgetSearch
from biasgym_tl.steering.factors import FactorSearch
from biasgym_tl.store import as_declared

SLOTS = ("row", "targets", "untrained row", "shuffled corpus", "other bias")
"""What stands in the slot while heads are scored: the trained row, or for a control a target (no
injection), the row before training, or a row trained on shuffled text or on another bias."""
SEARCHED = ("row", "none", "untrained row", "shuffled corpus", "other bias")
"""Whose rows a search is given, by the slots of maps."""
NULLS = ("", "other bias", "other biases", "random words")
ROWS = ("alike", "shipped", "trained", "none")
WAYS = {
    "top": ("map", "k", "share"), "overlap": ("map", "k", "share"),
    "factors": ("settings", "null", "rows"), "budget": ("k", "settings", "null", "rows"),
    "given": ("heads",),
}  # fmt: skip
"""How heads are chosen, and which fields of :class:`Choice` say so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How rows are made."""

    preset: str = "cpu"
    """``"cpu"`` or ``"paper"``: the settings of :class:`BiasInject` that ``settings`` change."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: str = "alike"
    """When a row that ships is taken. ``"alike"``: if it was trained in this very way;
    ``"shipped"``: also if its settings are others; ``"trained"``: never. ``"none"``: there are no
    rows, nor of a bias without a corpus: it is steered as the model holds it."""

    def check(self) -> None:
        """Refuse what could not be trained."""
        self.inject  # noqa: B018 - checks the settings
        check_one_of("rows of the training", self.rows, ROWS)

    @property
    def inject(self) -> BiasInject:
        """The settings as a training takes them."""
        check_one_of("preset", self.preset, PRESETS)
        make = BiasInject.cpu if self.preset == "cpu" else BiasInject
        found: BiasInject = _made(make, BiasInject, self.settings, "training")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Map:
    """How heads are scored."""

    slot: str = "row"
    """One of ``SLOTS``."""
    other: str = ""
    """The ``"other bias"``; default: the next of the protocol, or of those that ship."""
    n_prompts: int | None = None
    """Only the first scoping prompts; None: all."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of :class:`BiasScope`, without its seed."""

    def scope(self, seed: int) -> BiasScope:
        """The settings as an attribution takes them."""
        found: BiasScope = _made(BiasScope, BiasScope, {**self.settings, "seed": seed}, "map")
        return found

    def row_of(self, bias: Bias, seed: int, of: Sequence[str]) -> Bias:
        """What the row in the slot is trained on, in a protocol with the biases ``of``."""
        if self.slot == "shuffled corpus":
            return shuffled(bias, seed=seed)
        if self.slot != "other bias":
            return bias
        return load_bias(self.other) if self.other else next_bias(bias, of)

    def check(self, name: str) -> None:
        """Refuse what could not be scored."""
        check_file_name(name)
        if "seed" in self.settings:
            raise SettingError(f"seed of the map {name!r} must be left to the protocol's seeds.")
        self.scope(0)
        check_one_of(f"slot of the map {name!r}", self.slot, SLOTS)
        if self.other:
            load_bias(self.other)
        check_at_least(1, **{f"n_prompts of the map {name!r}": self.n_prompts})


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
    null: str = ""
    """A control of a search, the same but for its bias: ``"other bias"``, the next of the protocol
    or of those that ship; ``"other biases"``, all others of the protocol together, so that this one
    is left out; or ``"random words"``, others in the place of the bias's own."""
    rows: str = "row"
    """What a search is given as BiasTokens, one of ``SEARCHED``: those of all seeds."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of :class:`FactorSearch` or :class:`BudgetSearch`."""

    def biases_of(self, bias: Bias, of: Sequence[str]) -> list[Bias]:
        """What is searched for, in a protocol with the biases ``of``."""
        if self.null == "other biases":
            return [each for each in map(load_bias, of) if each.name != bias.name]
        if self.null == "other bias":
            return [next_bias(bias, of)]
        return [with_random_words(bias) if self.null else bias]

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
        check_file_name(name)
        check_one_of(f"by of the choice {name!r}", self.by, WAYS)
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
            if self.by == "budget" and self.null == "other biases":
                raise SettingError(f"the choice {name!r} by 'budget' must be of one bias.")
            check_one_of(f"null of the choice {name!r}", self.null, NULLS)
            check_one_of(f"rows of the choice {name!r}", self.rows, SEARCHED)
        elif self.by == "given":
            if not self.heads:
                raise SettingError(f"heads of the choice {name!r} must be given, got none.")
            if Path(self.heads).suffix != ".json":
                as_heads(self.heads)
        else:
            check_one_of(f"map of the choice {name!r}", self.map, maps)
            if (self.k is None) == (self.share is None):
                raise SettingError(
                    f"the choice {name!r} must have k or share, got {self.k} and {self.share}."
                )
            check_at_least(1, **{f"k of the choice {name!r}": self.k})
            if self.share is not None and not 0 < self.share <= 1:
                raise SettingError(f"share of {name!r} must lie in 0..1, got {self.share!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured in the conditions."""

    n_targets: int = 10
    """Held-out targets."""
    n_facts: int | None = None
    """Facts that are asked; None: all."""
    others: tuple[str, ...] = ()
    """Biases that the row was not trained on: log-odds and free answers. Names, or ``"rest"``: the
    other biases of the protocol, or ``"shipped"``: all that ship, about the same kind of target."""
    further: tuple[str, ...] = ()
    """More of them, of which only log-odds are measured."""
    benchmarks: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a benchmark -> file, folder or data set."""
    whole_benchmarks: bool = False
    """All of their items, not a sample."""
    implicit: bool = True
    """Scenes that do not name the attribute, where some ship for the bias."""
    off_target: bool = True
    """Log-odds off target, where the bias has a panel."""
    answers: bool = True
    """Free answers."""
    max_new_tokens: int = 48
    """Their length."""
    judge: str | None = None
    """Scores them: ``"local"``, or ``"api:MODEL"``."""

    def check(self) -> None:
        """Refuse what could not be measured."""
        check_at_least(1, n_targets=self.n_targets, n_facts=self.n_facts)
        check_at_least(1, max_new_tokens=self.max_new_tokens)
        check_benchmarks(self.benchmarks)
        check_judge(self.judge)

    def other_biases(self, bias: Bias, names: tuple[str, ...], of: tuple[str, ...]) -> list[Bias]:
        """The others of a bias, about the same kind of target; in order of names, so that runs of
        other biases find what was measured."""
        groups: dict[str, Sequence[str]] = {"rest": of, "shipped": list_biases()}
        listed = {n for name in names for n in groups.get(name, (name,))}
        loaded = [load_bias(name) for name in sorted(listed)]
        special = set(names) & set(groups)
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
        check_one_of("map of a sweep", self.map, maps)
        check_one_of("mode of a sweep", self.mode, MODES)
        if not self.ks or self.ks[0] < 1 or sorted(set(self.ks)) != list(self.ks):
            raise SettingError(f"ks of a sweep must rise from 1 or more, got {self.ks}.")


def _made(make: Any, kind: type, settings: Mapping[str, Any], what: str) -> Any:
    """Made with settings of a class, whose names and types are checked."""
    try:
        return make(**as_declared(kind, settings))
    except StoreError as error:
        raise SettingError(
            f"settings of the {what} must be of {kind.__name__}: {error}."
        ) from error


def check_file_name(name: str) -> None:
    """Refuse a name that could not be one of a file."""
    if not re.fullmatch(r"\w[\w. -]{0,59}", name):
        raise SettingError(
            "names of maps, choices and rivals must be letters, digits, spaces, '.' and '-' (they "
            f"name files), got {name!r}."
        )
