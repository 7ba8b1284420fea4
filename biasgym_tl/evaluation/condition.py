"""A condition is data: which row the BiasToken has, what is steered, how the model is asked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.gate import check_names
from biasgym_tl.heads import Factor, GivenHeads, as_heads, by_head, check_heads
from biasgym_tl.hooks import steer, steering_edit
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.instructions import NOTHING, Instruction
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.notebook import described
from biasgym_tl.rivals.intervention import Intervention
from biasgym_tl.steering.controls import layer_matched, matched_factor
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import digest

BRIEF = ("token log-odds", "target log-odds", "loss", "facts")
"""Measurements of conditions that stand beside the others: quick, and without free answers."""


@described
@dataclasses.dataclass(frozen=True)
class Condition:
    """One way to run a model, measured under one name."""

    name: str
    row: BiasToken | None = None
    """What the BiasToken stands for; None: there is none, and nothing is measured with it."""
    heads: Selection | GivenHeads = ()
    """As in :func:`biasgym_tl.steer`. A ``Selection`` is checked not to rest on what is measured,
    and brings its factors to mode ``"mean"``."""
    mode: str | None = None
    """``"zero"``, ``"mean"`` or ``"scale"``; None without heads."""
    factor: Factor = None
    """As in :func:`biasgym_tl.steer`."""
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None
    """What mode ``"mean"`` replaces with; None: the mean over neutral text."""
    after: tuple[str, ...] | None = None
    """As in :func:`biasgym_tl.steer`; None: those of the ``Selection``, if it has some."""
    instruction: Instruction = NOTHING
    """Words around each request."""
    measures: tuple[str, ...] | None = None
    """Names of the measurements made in it; None: all."""
    control_of: str | None = None
    """Name of the steered condition that this one is a random control of."""
    since: str | None = None
    """Name of the condition that changes of what the injection raised are counted from; None: the
    unsteered one with the same row."""
    rival: Intervention | None = None
    """Another intervention in the place of ``heads``, at the strength that it has."""

    def __post_init__(self) -> None:
        check_names(() if self.after is None else self.after)
        if not isinstance(self.heads, Selection):
            object.__setattr__(self, "heads", as_heads(self.heads))

    @property
    def steers(self) -> bool:
        """Whether it changes the model."""
        return self.mode is not None or self.rival is not None

    @property
    def factors(self) -> Factor:
        """``factor``, or what the ``Selection`` brings."""
        own = self.heads.factor if isinstance(self.heads, Selection) else None
        return own if self.factor is None and self.mode == "mean" else self.factor

    @property
    def names(self) -> tuple[str, ...]:
        """The names after which heads are changed; none: everywhere."""
        found = getattr(self.heads, "after", ()) if self.after is None else self.after
        return tuple(found)

    def uses(self, needs: str) -> list[Any]:
        """All of it that a measurement depends on, as JSON; equal where numbers are equal.

        Args:
            needs: ``"text"``: the steering alone; ``"request"``: the words around requests too;
                ``"row"``: all.
        """
        kept = self.record()["factor"]
        steering = [
            sorted(map(str, as_heads(self.heads))),
            self.mode,
            sorted(kept.items()) if isinstance(kept, dict) else kept,
            None if self.reference is None else digest(self.reference.tolist()),
        ]
        more = [sorted(self.names)] if self.names else []
        more += [self.rival.uses()] if self.rival else []
        return [*steering, *more, *self.inputs(needs)]

    def inputs(self, needs: str) -> list[Any]:
        """The part of :meth:`uses` that decides which embeddings the model is given."""
        row = [self.row.row.tolist(), self.row.text] if needs == "row" and self.row else []
        return [*([] if needs == "text" else self.instruction), *row]

    def first_layer(self, model: HookedTransformer) -> int:
        """The first layer that it steers; the number of layers if it steers none."""
        if self.rival:
            return self.rival.first_layer(model)
        return min((head.layer for head in as_heads(self.heads)), default=model.cfg.n_layers)

    def check(self, model: HookedTransformer) -> None:
        """Find out before the first measurement what could not be measured.

        Raises:
            SteeringError: heads, mode, factor or reference are not valid.
            TokenError: the row does not fit the model.
        """
        if self.row:
            self.row.check(model)
        heads = check_heads(self.heads, model.cfg.n_layers, model.cfg.n_heads)
        if self.rival:
            self.rival.check(model)
        if self.rival and heads:
            raise SteeringError(
                f"heads of the condition {self.name!r} must be none beside a rival, got "
                f"{len(heads)}. Make two conditions of it."
            )
        if bool(heads) != (self.mode is not None):
            raise SteeringError(
                f"mode of the condition {self.name!r} must be given with heads and None without, "
                f"got {self.mode!r} with {len(heads)} heads."
            )
        if self.mode is None:
            return
        shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
        stand_in = torch.zeros(shape) if self.mode == "mean" else None
        reference = stand_in if self.reference is None else self.reference
        try:
            steering_edit(model, heads, self.mode, reference, self.factors)
        except SteeringError as error:
            raise SteeringError(f"condition {self.name!r}: {error}") from error

    @contextlib.contextmanager
    def steered(
        self, model: HookedTransformer, neutral: Float[Tensor, "n_layers n_heads d_head"] | None
    ) -> Iterator[None]:
        """The model with the heads silenced, without the row; ``neutral`` is the default mean."""
        if self.mode is None:
            with self.rival.applied(model) if self.rival else contextlib.nullcontext():
                yield
            return
        mean = neutral if self.reference is None else self.reference
        reference = mean if self.mode == "mean" else None
        with steer(
            model, self.heads, self.mode, reference=reference, factor=self.factors, after=self.names
        ):
            yield

    def record(self) -> dict[str, Any]:
        """What a result keeps of it."""
        factor: Any = self.factors
        if isinstance(factor, Mapping):
            factor = {str(head): value for head, value in by_head(factor).items()}
        return {
            "name": self.name,
            "heads": tuple(map(str, as_heads(self.heads))),
            "mode": self.mode,
            "token": self.row.label if self.row else "",
            "factor": factor,
            "instruction": self.instruction.name,
            "control_of": self.control_of,
            "since": self.since,
            **({"after": self.names} if self.names else {}),
            **({"rival": self.rival.told()} if self.rival else {}),
        }


def standard_conditions(
    token: BiasToken | None,
    heads: Selection | GivenHeads = (),
    *,
    modes: Sequence[str] = ("zero", "mean"),
    factor: Factor = None,
    instructions: Iterable[Instruction] = (),
) -> list[Condition]:
    """The usual ones: ``original`` (the row as it was before training), ``injected``, for each mode
    ``steered, mode``, for each instruction ``asked, name``.

    Args:
        token: A trained BiasToken. None: a stereotype that the model holds by itself is steered;
            there is no ``injected``.
        heads: The heads to steer, chosen beforehand.
        modes: What they are replaced with: ``"zero"``, ``"mean"``, ``"scale"``.
        factor: What they keep of their own output in the modes ``"mean"`` and ``"scale"``.
        instructions: Requests for answers without stereotypes, such as
            ``biasgym_tl.instructions.INSTRUCTIONS.values()``.
    """
    chosen = heads if isinstance(heads, Selection) else as_heads(heads)
    return [
        Condition("original", token and token.untrained()),
        *([Condition("injected", token)] if token else []),
        *(
            Condition(f"steered, {m}", token, chosen, m, None if m == "zero" else factor)
            for m in (modes if len(chosen) else ())
        ),
        *(Condition(f"asked, {each.name}", token, instruction=each) for each in instructions),
    ]


def random_conditions(
    condition: Condition,
    n_heads: int,
    *,
    n: int = 5,
    seed: int = 0,
    measures: tuple[str, ...] = BRIEF,
) -> list[Condition]:
    """Controls of a steered condition: as many heads in each layer, drawn at random, with its own
    mode, factors and reference.

    Args:
        condition: What they are compared with.
        n_heads: Heads in a layer of the model.
        n: Number of sets; 5 illustrate, 199 give p-values down to 0.005. The first sets of more
            draws are those of fewer.
        seed: Decides the draws.
        measures: Names of the measurements made in them.

    Raises:
        SettingError: ``n`` is negative, or nothing is steered.
    """
    chosen = as_heads(condition.heads)
    if not chosen:
        raise SettingError(f"condition must steer heads, got {condition.name!r}, which does not.")
    drawn = layer_matched(chosen, n_heads=n_heads, n_draws=n, seed=seed)
    return [
        dataclasses.replace(
            condition,
            name=f"{condition.name}: random {i}",
            heads=heads,
            factor=matched_factor(chosen, heads, condition.factors),
            after=condition.names,
            measures=measures,
            control_of=condition.name,
        )
        for i, heads in enumerate(drawn, start=1)
    ]
