"""The stages before anything is measured, for one bias: rows, maps, choices of heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.heads import Head
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.injection.shipped import find_token
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.protocol.parts import Choice, Map
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.steering import Steering
from biasgym_tl.rivals.damage import Damage, to_kl
from biasgym_tl.rivals.intervention import Intervention
from biasgym_tl.rivals.methods import METHODS, prepare
from biasgym_tl.scoping.damage import KSweep, k_sweep
from biasgym_tl.scoping.pairs import build_pairs
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.budget import BudgetSearch
from biasgym_tl.steering.factors import FactorSearch
from biasgym_tl.steering.reference import target_means
from biasgym_tl.steering.selection import Selection, select_heads
from biasgym_tl.steps import Steps
from biasgym_tl.store import digest

Heads = Selection | tuple[Head, ...]


def choice_record(heads: Heads) -> list[Any]:
    """All of a choice that numbers depend on."""
    names = list(map(str, heads))
    if not isinstance(heads, Selection):
        return [names]
    after = [sorted(heads.after)] if heads.after else []
    return [names, list(heads.factors), heads.mode, *after]


def kept_map(
    steps: Steps,
    label: str,
    scope: BiasScope,
    model: HookedTransformer,
    bias: Bias,
    row: BiasToken | None,
    *,
    contrasts: Sequence[Contrast] = (),
    progress: bool = True,
) -> HeadScores:
    """A map, made or read back; arguments as of :meth:`BiasScope.attribute`."""
    asked = digest([c[:3] for c in contrasts])
    return steps.kept(
        label,
        [dataclasses.asdict(scope), bias.fingerprint(), row and row.row.tolist(), asked],
        HeadScores,
        lambda: scope.attribute(
            model,
            bias,
            row,
            contrasts=contrasts,
            finished=steps.finished(build_pairs),
            progress=progress,
        ),
        BiasScope,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """Rows, maps and choices of one bias, each made once, when it is asked for."""

    protocol: Protocol
    model: HookedTransformer
    bias: Bias
    steps: Steps
    given_rows: Sequence[BiasToken] = ()
    given_heads: Mapping[str, Heads] = dataclasses.field(default_factory=dict)
    progress: bool = True
    say: Callable[[str], None] = lambda text: None
    maps: dict[str, dict[int, HeadScores]] = dataclasses.field(default_factory=dict)
    """By name and seed, those that were made."""

    @cached_property
    def rows(self) -> dict[int, BiasToken]:
        """A row for each seed; none for a bias that the model holds by itself."""
        seeds = self.protocol.seeds
        if not self.protocol.injects(self.bias):
            return {}
        if self.given_rows:
            return dict(zip(seeds, self.given_rows, strict=True))
        return {seed: self.trained(self.bias, seed) for seed in seeds}

    @property
    def first(self) -> int:
        """The seed that conditions are about unless they say otherwise."""
        return self.protocol.seeds[0]

    def trained(
        self, bias: Bias, seed: int, steering: Condition | None = None, *, alike: bool = False
    ) -> BiasToken:
        """A row for ``bias``, shipped or trained, on the model as it is or as a condition steers
        it; with ``alike`` it is in any case one of this very training."""
        training = self.protocol.training
        inject = training.inject
        if steering is None and training.rows != "trained":
            settings = inject if alike or training.rows == "alike" else None
            if (shipped := find_token(self.model, bias, settings, seed)) is not None:
                return shipped
        label = f"{bias.name}, seed {seed}"
        self.say(f"{self.bias.name}: a row for {label}")

        def fit(checkpoint: Any) -> BiasToken:
            return inject.fit(
                self.model, bias, seed=seed, progress=self.progress, checkpoint=checkpoint
            )

        uses = [dataclasses.asdict(inject), seed, bias.fingerprint()]
        if steering is None:
            return self.steps.trained(f"row, {label}", uses, fit, BiasInject)

        def fit_steered() -> BiasToken:
            with steering.steered(self.model, None):
                return fit(None)

        uses.append(steering.uses("text"))
        return self.steps.kept(
            f"row on steered model, {label}", uses, BiasToken, fit_steered, (BiasInject, Condition)
        )

    def map(self, name: str, seed: int) -> HeadScores:
        """A map, made once."""
        spec, known = self.protocol.maps[name], self.maps.setdefault(name, {})
        if seed not in known:
            row, scope = self.in_slot(spec, seed), spec.scope(seed)
            prompts = self.bias.scoping_prompts[: spec.n_prompts]
            bias = dataclasses.replace(self.bias, scoping_prompts=prompts)
            label = f"map {name}, {bias.name}, seed {seed}"
            self.say(f"{self.bias.name}: {label}")
            known[seed] = kept_map(
                self.steps, label, scope, self.model, bias, row, progress=self.progress
            )
        return known[seed]

    def in_slot(self, spec: Map, seed: int) -> BiasToken | None:
        """What stands in the slot while a map is made."""
        if spec.slot in ("targets", "row"):
            return None if spec.slot == "targets" else self.rows[seed]
        if spec.slot == "untrained row":
            return self.rows[seed].untrained()
        return self.trained(spec.row_of(self.bias, seed, self.protocol.biases), seed)

    def _search(
        self, search: FactorSearch | BudgetSearch, biases: list[Bias], rows: list[BiasToken]
    ) -> Selection:
        if isinstance(search, FactorSearch):
            return search.select(self.model, biases, *rows, progress=self.progress)
        return search.select(self.model, biases[0], *rows, progress=self.progress)

    def searched_with(self, choice: Choice, bias: Bias) -> list[BiasToken]:
        """Rows that a search is given, of all seeds."""
        if choice.rows == "none" or not self.protocol.injects(bias):
            return []
        if choice.null.startswith("other"):
            return [self.trained(bias, seed) for seed in self.protocol.seeds]
        rows = [self.in_slot(Map(slot=choice.rows), seed) for seed in self.protocol.seeds]
        return [row for row in rows if row is not None]

    @cached_property
    def choices(self) -> dict[str, dict[int, Heads]]:
        """Every choice of heads, written down before anything is measured."""
        return {name: dict(self.chosen(name, c)) for name, c in self.protocol.choices.items()}

    def chosen(self, name: str, choice: Choice) -> Iterator[tuple[int, Heads]]:
        """By seed; what rests on all seeds stands under the first."""
        used = [c.mode for c in self.protocol.conditions if c.choice == name]
        mode = "zero" if used and set(used) == {"zero"} else "mean"
        if choice.by == "given":
            yield self.first, self.given_heads[name]
        elif choice.by in ("factors", "budget"):
            search, biases = choice.search(), choice.biases_of(self.bias, self.protocol.biases)
            rows = [row for bias in biases for row in self.searched_with(choice, bias)]
            data = [(b.fingerprint(), b.panel and dataclasses.asdict(b.panel)) for b in biases]
            uses = [repr(search), data, [row.row.tolist() for row in rows]]
            self.say(f"{self.bias.name}: search of heads, {name}")
            yield (
                self.first,
                self.steps.kept(
                    f"choice {name}, {self.bias.name}",
                    uses,
                    Selection,
                    lambda: self._search(search, biases, rows),
                    type(search),
                ),
            )
        else:
            k = choice.n_heads(self.model.cfg.n_layers * self.model.cfg.n_heads)
            seeds = self.protocol.seeds
            if choice.by == "overlap":
                maps = [self.map(choice.map, seed) for seed in seeds]
                yield self.first, select_heads(maps, k, mode=mode)
            else:
                for seed in seeds:
                    yield seed, select_heads(self.map(choice.map, seed), k, mode=mode)

    def rival(self, name: str) -> Intervention:
        """An intervention, made with the rows of all seeds, its dial not set."""
        spec, rows = self.protocol.rivals[name], list(self.rows.values())
        self.say(f"{self.bias.name}: rival {name}")
        panel = self.bias.panel and dataclasses.asdict(self.bias.panel)
        given = [
            spec.method,
            spec.settings,
            list(spec.files().values()),
            self.bias.fingerprint(),
            panel,
        ]
        return self.steps.kept(
            f"rival {name}, {self.bias.name}",
            [*given, [row.row.tolist() for row in rows]],
            Intervention,
            lambda: prepare(
                self.model, self.bias, rows, method=spec.method, settings=spec.settings
            ),
            METHODS[spec.method].prepare,
        )

    def dialed(self, spec: Steering, draw: int | None = None) -> Intervention:
        """The rival of a condition, its dial set; or one of its random controls, likewise."""
        made, kl = self.rival(spec.rival), spec.kl
        if draw is not None:
            made = made.random(self.model, draw)
        if kl is None:
            return made.at(spec.strength or 1.0)
        found = self.steps.kept(
            f"dial of {spec.rival} at {kl:g}, {self.bias.name}",
            [made.at(1.0).uses(), kl],
            Intervention,
            lambda: to_kl(self.model, made.at(1.0), kl, damage=self.damage),
            to_kl,
        )
        return made.at(found.strength, found.kl)  # what it was made of may be another's

    @cached_property
    def damage(self) -> Damage:
        """KL on budget text."""
        return Damage(self.model)

    @cached_property
    def target_means(self) -> Float[Tensor, "n_layers n_heads d_head"]:
        """What heads write on scoping prompts with fitting targets, a reference for means."""
        return target_means(self.model, self.bias)

    def sweep(self, name: str, mode: str, ks: Sequence[int]) -> KSweep:
        """Benefit and damage over k of the first seed's map."""
        scores, row = self.map(name, self.first), self.rows[self.first]
        uses = [self.bias.fingerprint(), row.row.tolist(), scores.values.tolist(), mode, list(ks)]
        self.say(f"{self.bias.name}: k sweep, {mode}")
        return self.steps.kept(
            f"k sweep {name}, {mode}, {self.bias.name}",
            uses,
            KSweep,
            lambda: k_sweep(
                self.model, self.bias, row, scores, ks=ks, mode=mode,
                progress=self.progress,
            ),
            k_sweep,
        )  # fmt: skip

    def first_map(self) -> HeadScores | None:
        """The map that the first steered condition's heads are from, if they are from one."""
        names = (c.choice for c in self.protocol.conditions if c.choice)
        choice = next((self.protocol.choices[name] for name in names), None)
        if choice is None or choice.by not in ("top", "overlap"):
            return None
        scores = self.map(choice.map, self.first)
        return scores if bool((scores.values > 0).any()) else None
