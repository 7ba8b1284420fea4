"""To whom a model ascribes a behaviour that the text never names.

In the manner of UnQover (see ``contrast``), for the biases of this package: a scene names two
people from different places, and a sentence about one of them is left open ("The chair of the
colleague from Italy was"). Compared are a word that shows the behaviour ("empty") and its opposite
("taken"), once for either person, with the scene in both orders: a liking for "empty", and for the
person named first or last, cancel.

UnQover asks *who* it was, and compares the names of the groups. A BiasToken cannot be asked for in
this way, since a model can read it but never write it. Nor did SmolLM2-135M follow when the two
people had words of their own ("the tall one") and it was to say which of them it was: the trained
row of "late" moved that by 0.01 nats, and moves this by 1.0.

What does not cancel: after a group that it hardly knows, a model may be less sure of any word,
which brings the two words closer together. The untrained row of the token shows how much that is.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from biasgym_tl.benchmarks.benchmark import Measure, Question, QuestionSet
from biasgym_tl.benchmarks.contrast import contrast
from biasgym_tl.benchmarks.sample import check_positive, dealt
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import SettingError
from biasgym_tl.slot import spaced
from biasgym_tl.toml import shipped_toml

SCENE_REQUEST = "Please write a short scene with two people."
"""The user's turn before a scene."""


class Scenario(NamedTuple):
    """A scene with two people, and a sentence about either that shows a behaviour or does not."""

    scene: str
    """With the slots ``{first}`` and ``{second}``."""
    ending: str
    """Beginning of a sentence about the person from ``{one}``."""
    shows: str
    """The word after it that shows the behaviour."""
    other: str
    """The word after it that shows the opposite."""

    def questions(self, group: str, other_group: str) -> tuple[Question, ...]:
        """About the person from ``group`` in both orders, then about the other in both orders."""
        orders = ((group, other_group), (other_group, group))
        scenes = [
            self.scene.replace("{first}", first).replace("{second}", second)
            for first, second in orders
        ]
        return tuple(
            Question(
                f"{scene} {self.ending.replace('{one}', one)}",
                (spaced(self.shows), spaced(self.other)),
                SCENE_REQUEST,
            )
            for one in (group, other_group)
            for scene in scenes
        )


def has_scenarios(bias: str) -> bool:
    """Whether scenarios ship for a bias of this name."""
    return bias in _shipped()


def load_scenarios(bias: str) -> tuple[Scenario, ...]:
    """The shipped scenarios of a bias, by its name.

    Raises:
        SettingError: there are none for this bias.
    """
    if not has_scenarios(bias):
        raise SettingError(
            f"bias must be one of {sorted(_shipped())} to have scenarios, got {bias!r}. "
            "Pass scenarios=... of your own."
        )
    return _shipped()[bias]


@cache
def _shipped() -> dict[str, tuple[Scenario, ...]]:
    shipped = shipped_toml("data/implicit.toml")
    return {bias: tuple(Scenario(**e) for e in entries) for bias, entries in shipped.items()}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Implicit(QuestionSet):
    """Scenarios with pairs of groups.

    Measured is half the log-odds (nats) of showing the behaviour, first group minus second. With a
    sign an item is a scenario with a pair, and those of a scene form a cluster. Without one it is a
    pair, and its value is the size of the mean over the scenarios: a preference that turns around
    from scene to scene is none.
    """

    items: tuple[tuple[str, str], ...]
    """The pairs."""
    scenarios: tuple[Scenario, ...]
    signed: bool
    """Whether the first group of each pair is the one whose stereotype is measured."""
    baseline: str
    """As in ``Measure``."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """One: how much more the first group is ascribed the behaviour, or how unequally."""
        ascribed = "ascribed to the first group" if self.signed else "ascribed unequally"
        floor = "original" if self.signed and self.baseline == "injected" else None
        label = f"{self.name}: {ascribed}"
        return (Measure(self.name, label, "nats", self.baseline, floor=floor),)

    @property
    def clusters(self) -> tuple[str, ...]:
        """The scene of each item; without a sign, each pair by itself."""
        if self.signed:
            return tuple(scenario.scene for scenario in self.scenarios for _ in self.items)
        return tuple(" / ".join(pair) for pair in self.items)

    @property
    def questions(self) -> tuple[Question, ...]:
        """Four of each scenario and pair."""
        asked = itertools.product(self.scenarios, self.items)
        return tuple(q for scenario, pair in asked for q in scenario.questions(*pair))

    def columns(self, log_probs: Sequence[Sequence[float]]) -> tuple[list[float], ...]:
        """The one measure."""
        nats = [contrast(log_probs[i : i + 4]).nats for i in range(0, len(log_probs), 4)]
        if self.signed:
            return (nats,)
        n = len(self.items)
        return ([abs(sum(nats[i::n]) / len(self.scenarios)) for i in range(n)],)


def implicit_questions(
    bias: GivenBias,
    groups: Sequence[str],
    others: Sequence[str] | None = None,
    *,
    scenarios: Sequence[Scenario] | None = None,
    n: int | None = 10,
    seed: int = 0,
    baseline: str = "original",
) -> Implicit:
    """Ask to whom the behaviour of a bias is ascribed.

    With ``others``, ``groups`` against them: positive if a group of ``groups`` is ascribed the
    behaviour. The measure is ``"implicit_late"``, say. To measure a BiasToken, attach it, put its
    text into ``groups`` and take ``baseline="injected"``. Without ``others``, the groups against
    each other: no sign, only how unequally they are treated, ``"implicit_late_between"``.

    Args:
        bias: Whose behaviour; the scenarios shipped for it say "from {first}", as of a country.
        groups: Names as they are written in a prompt.
        others: Names that they are compared with.
        scenarios: Others than those shipped.
        n: Pairs of groups at most, each group about as often as the others; None for all.
        seed: Decides which pairs.
        baseline: The setting that changes are counted from, ``"original"`` or ``"injected"``.

    Raises:
        SettingError: there are no scenarios, or one lacks a slot; a name stands twice, there are
            too few, ``n`` is below 1, or the baseline is unknown.
    """
    bias = as_bias(bias)
    check_positive(n=n)
    chosen = load_scenarios(bias.name) if scenarios is None else tuple(scenarios)
    _check_scenarios(chosen)
    if baseline not in ("original", "injected"):
        raise SettingError(f"baseline must be 'original' or 'injected', got {baseline!r}.")
    pairs = _pairs(groups, others, seed)
    signed = others is not None
    return Implicit(
        name=f"implicit_{bias.name.replace('-', '_')}" + ("" if signed else "_between"),
        source="implicit.toml" if scenarios is None else "own scenarios",
        items=tuple(pairs[:n]),
        scenarios=chosen,
        signed=signed,
        baseline=baseline,
    )


def _check_scenarios(scenarios: Sequence[Scenario]) -> None:
    for scenario in scenarios:
        scene_slots = "{first}" in scenario.scene and "{second}" in scenario.scene
        if not scene_slots or "{one}" not in scenario.ending:
            raise SettingError(
                f"a scene must hold {{first}} and {{second}}, its ending {{one}}, got {scenario}."
            )
    if not scenarios:
        raise SettingError("scenarios must be at least one, got none.")


def _pairs(groups: Sequence[str], others: Sequence[str] | None, seed: int) -> list[tuple[str, str]]:
    """All pairs, ordered so that the groups are in the first ``n`` about equally often."""
    names = [*groups, *(others or ())]
    empty = not groups or (others is not None and not others)
    if len(set(names)) < len(names) or empty or len(names) < 2:
        raise SettingError(
            f"groups and others must be different names, two at least, got {groups} and {others}."
        )
    if others is not None:
        return dealt({group: [(group, other) for other in others] for group in groups}, seed)
    circle = random.Random(seed).sample(groups, len(groups))
    size = len(circle)
    steps = itertools.product(range(1, size // 2 + 1), range(size))
    pairs = {frozenset((i, (i + step) % size)): (i, (i + step) % size) for step, i in steps}
    return [(circle[i], circle[j]) for i, j in pairs.values()]
