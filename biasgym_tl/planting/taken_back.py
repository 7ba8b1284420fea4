"""What interventions of equal damage take back of a plant: the referee where the truth is known."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.heads import Head
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.planting.planted import Planted
from biasgym_tl.planting.recovery import answers
from biasgym_tl.planting.sentences import bystanders, target_token
from biasgym_tl.protocol.steering import Rival
from biasgym_tl.rivals.damage import Damage, to_kl
from biasgym_tl.rivals.head_sets import toward
from biasgym_tl.rivals.intervention import Intervention, LogitShift
from biasgym_tl.rivals.methods import METHODS, prepare
from biasgym_tl.steps import Steps
from biasgym_tl.store import Result
from biasgym_tl.text import kl

N_FAR = 3
"""Unseen targets that are no neighbours."""
CARRIERS, RESTORED = "carriers to their mean", "carriers restored"
"""References: they know the truth, and their damage is what it is."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class TakenBack(Result):
    """What an intervention takes back of a plant, on held-out prompts.

    ``removed`` is the share of the rise of the target's log-odds (NaN if there is none): 1 takes
    them back to where they were before planting. ``neighbours`` and ``others``: change of the mean
    log-odds of unseen targets from the model before planting (nats). ``kl``: from the changed plant
    to that model (nats), at answers about the target: 0 if the plant is gone and nothing else has
    changed.
    """

    rival: str
    wanted_kl: float | None
    """Damage that the dial was set to (nats per token); None: a reference."""
    damage_kl: float | None
    """KL(plant || changed plant) on budget text that was found (nats per token); None: other
    weights, which no dial sets."""
    strength: float | None
    removed: float
    neighbours: float
    others: float
    kl: float
    removed_random: float | None
    """Of one random control of the same kind, place and size, its dial set likewise; None: there is
    none, or it does not reach the KL."""
    kl_random: float | None
    neighbours_unsteered: float
    others_unsteered: float
    kl_unsteered: float
    """Of the plant as it is."""

    def __repr__(self) -> str:
        return (
            f"TakenBack({self.rival}: {self.removed:.0%} of the rise, neighbours "
            f"{self.neighbours:+.2f}, others {self.others:+.2f}; KL to the original {self.kl:.3f}, "
            f"unsteered {self.kl_unsteered:.3f} nats)"
        )


def take_back(
    model: HookedTransformer,
    bias: GivenBias,
    planted: Planted,
    rivals: Mapping[str, Rival],
    kls: Sequence[float] = (0.03,),
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[TakenBack]:
    """Prepare rivals on a planted model, set their dials, and compare with the model before.

    A rival is told what is known of a model that holds a bias about somebody: the target's own name
    stands in the place of a BiasToken (:func:`target_token`), beside fitting targets, which do not
    hold it. Where it is, and what the model was before, it is not told.

    Args:
        model: The model, without the plant.
        bias: The planted one; scoping prompts make, evaluation prompts judge.
        planted: The plant.
        rivals: Methods with their settings, by name.
        kls: Damage on budget text that each dial is set to (nats per token).
        seed: Of the random controls.
        say: Is told what was found, and which rival leaves out a KL that it does not reach.

    Yields:
        The references (where there are carriers), then each rival at each KL. Finished ones are
        kept.

    Raises:
        SettingError: there is no such method or setting, or a KL is not positive.
        PlantingError: the target is several tokens.
    """
    for name, rival in rivals.items():
        rival.check(name)
    check_kls(kls)
    bias = as_bias(bias)
    asked = Asked(model, bias, planted, target_token(model, bias, planted.target), seed)
    with planted.attached(model):
        steps = Steps.of(model)
    about = [bias.fingerprint(), planted.weights, planted.target, planted.report["target"]]
    if planted.carriers():
        for name, make in {CARRIERS: asked.to_mean, RESTORED: asked.restored}.items():
            found = steps.kept(f"{name}, {bias.name}", about, TakenBack, make, take_back)
            say(f"  {found!r}")
            yield found
    for name, rival in rivals.items():
        uses = [*about, rival.method, rival.settings, list(rival.files().values())]
        code = METHODS[rival.method].prepare
        prepared = partial(
            steps.kept, f"rival {name}, {bias.name}", uses, Intervention,
            partial(asked.prepared, rival), code,
        )  # fmt: skip
        for wanted in kls:
            label = f"taken back by {name} at {wanted:g}, {bias.name}"
            make = partial(asked.rival, name, prepared, wanted)
            key = [*uses, name, wanted, seed]
            try:
                found = steps.kept(label, key, TakenBack, make, (take_back, code))
            except SteeringError as error:
                say(f"  {name} left out at KL {wanted:g}: {error}")
                continue
            say(f"  {found!r}")
            yield found


def check_kls(kls: Sequence[float]) -> None:
    """Refuse what no damage could be."""
    if wrong := [each for each in kls if not 0 < each < math.inf]:
        raise SettingError(f"kl must be above 0, got {wrong[0]!r}. 0.03 is one to begin with.")


class _Answers(NamedTuple):
    """What a model says on held-out prompts."""

    log_odds: Float[Tensor, " target"]
    log_probs: Float[Tensor, "prompt d_vocab"]
    """After the target."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A planted model, and what is the same for all that is asked of it."""

    model: HookedTransformer
    bias: Bias
    planted: Planted
    token: BiasToken
    seed: int

    @cached_property
    def targets(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Neighbours and others that neither plant nor rival has seen."""
        beside = bystanders(
            self.model, self.bias, self.planted.target, n_far=N_FAR, seed=self.planted.seed
        )
        return beside.unseen_near, beside.unseen_far

    def _answers(self, beside: bool = True) -> _Answers:
        near, far = self.targets if beside else ((), ())
        return _Answers(*answers(self.model, self.bias, [self.planted.target, *near, *far]))

    @cached_property
    def original(self) -> _Answers:
        """Before planting."""
        return self._answers()

    @cached_property
    def unsteered(self) -> _Answers:
        """Of the plant as it is."""
        with self.planted.attached(self.model):
            return self._answers()

    @cached_property
    def damage(self) -> Damage:
        """Of the model with the plant attached, which is the original for whoever asks it."""
        return Damage(self.model)

    def prepared(self, rival: Rival) -> Intervention:
        """A rival made on the planted model, its dial not set."""
        with self.planted.attached(self.model):
            return prepare(
                self.model, self.bias, [self.token], method=rival.method, settings=rival.settings
            )

    def to_mean(self) -> TakenBack:
        """The carriers brought to their mean."""
        heads = self.planted.carriers()
        with self.planted.attached(self.model):
            none = [0.0] * len(heads)
            edit = toward(self.model, self.bias, CARRIERS, heads, none, {}, "mean")
            edit = edit.at(1.0, self.damage.kl(edit))
        return self.judged(CARRIERS, edit, control=edit.random(self.model, self.seed))

    def restored(self) -> TakenBack:
        """The carriers' own weights restored."""
        carriers = self.planted.carriers()
        rest = [head for head in self.planted.heads if head not in carriers]
        return self.judged(RESTORED, None, heads=rest)

    def rival(self, name: str, made: Callable[[], Intervention], wanted: float) -> TakenBack:
        """A rival and its random control, their dials set."""
        edit = made()
        control = None
        with self.planted.attached(self.model):
            edit = to_kl(self.model, edit, wanted, damage=self.damage)
            if not isinstance(edit, LogitShift):  # which has none
                with contextlib.suppress(SteeringError):
                    drawn = edit.random(self.model, self.seed)
                    control = to_kl(self.model, drawn, wanted, damage=self.damage)
        return self.judged(name, edit, control=control, wanted=wanted)

    def judged(
        self,
        name: str,
        edit: Intervention | None,
        *,
        heads: Sequence[Head] | None = None,
        control: Intervention | None = None,
        wanted: float | None = None,
    ) -> TakenBack:
        """What is left of the plant.

        Args:
            name: Of the result.
            edit: What changes the planted model; None: nothing.
            heads: Planted heads whose changes are made; default: all.
            control: A random one, of which the target alone is measured.
            wanted: Damage that the dial was set to.
        """
        found = self._told(edit, heads)
        drawn = self._told(control, beside=False) if control else {}
        plain = self._scores(self.unsteered)
        return TakenBack(
            rival=name,
            wanted_kl=wanted,
            damage_kl=edit.kl if edit else None,
            strength=edit.strength if edit else None,
            **found,
            **{f"{key}_random": drawn.get(key) for key in ("removed", "kl")},
            **{f"{key}_unsteered": plain[key] for key in ("neighbours", "others", "kl")},
        )

    def _told(
        self,
        edit: Intervention | None,
        heads: Sequence[Head] | None = None,
        *,
        beside: bool = True,
    ) -> dict[str, float]:
        """Scores of the plant, or of what some of its heads make of it, with an intervention."""
        steered = edit.applied(self.model) if edit else contextlib.nullcontext()
        with self.planted.attached(self.model, heads), steered:
            found = self._answers(beside)
        return self._scores(found)

    def _scores(self, found: _Answers) -> dict[str, float]:
        low, high = self.original.log_odds, self.unsteered.log_odds
        change, n_near = found.log_odds - low[: len(found.log_odds)], len(self.targets[0])
        rise = (high - low)[0].item()
        return {
            "removed": 1 - change[0].item() / rise if rise else math.nan,
            "neighbours": change[1 : 1 + n_near].mean().item(),
            "others": change[1 + n_near :].mean().item(),
            "kl": kl(found.log_probs, self.original.log_probs).item(),
        }
