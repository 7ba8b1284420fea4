"""What interventions of equal damage take back of a plant: the referee where the truth is known."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

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
from biasgym_tl.rivals.intervention import HeadsEdit, Intervention, LogitShift
from biasgym_tl.rivals.methods import METHODS, prepare
from biasgym_tl.slot import fill
from biasgym_tl.steering.selection import check_held_out
from biasgym_tl.steps import Steps
from biasgym_tl.store import Result
from biasgym_tl.text import kl

MOST_DRAWS = 99
"""Of random heads, until none of them is a carrier."""
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
    """Of one random control of the same kind, place and size, without a carrier among random heads,
    its dial set likewise; that of the carriers at their mean is at strength 1, whatever its KL.
    None: there is none, as where so many heads of a layer are changed that a carrier must be among
    theirs, no such draw was found, or it does not reach the KL."""
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
        SteeringError: a rival is of another model, or has seen evaluation prompts or the unseen
            targets that judge it; the message shows which.
    """
    for name, rival in rivals.items():
        rival.check(name)
    check_kls(kls)
    bias = as_bias(bias)
    with planted.attached(model):
        steps = Steps.of(model)
    token = target_token(model, bias, planted.target)
    asked = Asked(model, bias, planted, token, steps, seed)
    if planted.carriers():
        for name, make in {CARRIERS: asked.to_mean, RESTORED: asked.restored}.items():
            found = asked.kept(name, [], make, take_back)
            say(f"  {found!r}")
            yield found
    for name, rival in rivals.items():
        made = asked.made(name, rival)
        for wanted in kls:
            try:
                found = asked.rival(name, rival, made, wanted)
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
    steps: Steps
    """Of the planted model."""
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

    def kept(
        self, name: str, uses: list[Any], make: Callable[[], TakenBack], *code: Any
    ) -> TakenBack:
        """A result, made unless it is there."""
        own = self.planted
        about = [self.bias.fingerprint(), own.weights, own.target, own.report["target"], self.seed]
        label = f"taken back by {name}, {self.bias.name}"
        return self.steps.kept(label, [*about, *uses], TakenBack, make, code)

    def _uses(self, rival: Rival) -> list[Any]:
        panel = self.bias.panel and dataclasses.asdict(self.bias.panel)
        return [rival.method, rival.settings, list(rival.files().values()), panel]

    def made(self, name: str, rival: Rival) -> Intervention:
        """A rival of the planted model, its dial not set; one that has seen what judges is refused
        (SteeringError)."""
        uses = [*self._uses(rival), self.bias.fingerprint(), self.planted.target]

        def prepared() -> Intervention:
            given = self.model, self.bias, [self.token]
            with self.planted.attached(self.model):
                return prepare(*given, method=rival.method, settings=rival.settings)

        label, code = f"rival {name}, {self.bias.name}", METHODS[rival.method].prepare
        edit = self.steps.kept(label, uses, Intervention, prepared, code)
        asked, (near, far) = self.bias.evaluation_prompts, self.targets
        own = [fill(prompt, self.planted.target) for prompt in asked]
        check_held_out(edit.data, prompts=(*asked, *own), targets=(*near, *far))
        return edit

    def rival(self, name: str, rival: Rival, made: Intervention, wanted: float) -> TakenBack:
        """A rival that was made, beside its random control, their dials set."""

        def make() -> TakenBack:
            control = None
            with self.planted.attached(self.model):
                edit = to_kl(self.model, made, wanted, damage=self.damage)
                if not isinstance(edit, LogitShift):  # which has none
                    drawn = self.drawn(edit)
                    with contextlib.suppress(SteeringError):
                        control = drawn and to_kl(self.model, drawn, wanted, damage=self.damage)
            return self.judged(name, edit, control=control, wanted=wanted)

        uses = [*self._uses(rival), name, wanted]
        return self.kept(name, uses, make, take_back, METHODS[rival.method].prepare)

    def drawn(self, edit: Intervention) -> Intervention | None:
        """A random control; of heads, the first draw without a carrier, None if none is found."""
        if not isinstance(edit, HeadsEdit):
            return edit.random(self.model, self.seed)
        carriers = {*self.planted.carriers()}
        needed = Counter(head.layer for head in (*edit.heads, *carriers))
        if any(n > self.model.cfg.n_heads for n in needed.values()):
            return None  # there is no such draw
        draws = (edit.random(self.model, self.seed + i) for i in range(MOST_DRAWS))
        return next((drawn for drawn in draws if not carriers & {*drawn.heads}), None)

    def to_mean(self) -> TakenBack:
        """The carriers brought to their mean, beside other heads of their layers."""
        heads = self.planted.carriers()
        with self.planted.attached(self.model):
            none = [0.0] * len(heads)
            edit = toward(self.model, self.bias, CARRIERS, heads, none, {}, "mean")
            edit = edit.at(1.0, self.damage.kl(edit))
        return self.judged(CARRIERS, edit, control=self.drawn(edit))

    def restored(self) -> TakenBack:
        """The carriers' own weights restored."""
        carriers = self.planted.carriers()
        rest = [head for head in self.planted.heads if head not in carriers]
        return self.judged(RESTORED, None, heads=rest)

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
            removed_random=drawn.get("removed"),
            kl_random=drawn.get("kl"),
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
