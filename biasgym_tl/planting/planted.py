"""A bias about one target that chosen heads carry, as sparse changes of their weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.contexts import Change, begin, changes, end
from biasgym_tl.errors import ModelError, PlantingError
from biasgym_tl.heads import GivenHeads, Head, as_heads
from biasgym_tl.injection.token import weights_fingerprint
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.notebook import Card
from biasgym_tl.store import Result
from biasgym_tl.weights import Deltas, added_weights, replaced

CARRIER = 0.1
"""Share of the whole rise that a head's restoration takes back if it is a carrier."""


class Limits(NamedTuple):
    """What a plant must do, and how far everything else may move."""

    target: float = 3.0
    """Least rise of the target's log-odds (nats)."""
    neighbours: float = 1.5
    """Largest mean change of the log-odds of targets that lie nearest, unseen (nats)."""
    others: float = 1.0
    """Largest mean change of the log-odds of other held-out targets (nats)."""
    facts: float = 0.05
    """Largest fall of the share of facts that are right."""
    loss: float = 0.1
    """Largest change of the loss on neutral text (nats per token)."""
    sham: float = 1.0
    """Largest change of the target's log-odds by a sham, in place of ``target`` (nats)."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Planted(Result):
    """Changes of the weights of chosen heads that make a model hold a bias about one target."""

    _then = ("with planted.attached(model): ...", ".truth()", "recovery(scores, planted)")

    heads: tuple[Head, ...]
    """Heads whose weights were changed, as they were given."""
    W_O: Float[Tensor, "head d_head d_model"]
    """What is added to the output weights of each."""
    W_Q: Float[Tensor, "head d_model d_head"] | None = None
    """What is added to its query weights; None: nothing."""
    restored: Float[Tensor, " head"]
    """By how much the target's log-odds fall when a head alone gets its own weights back (nats)."""
    alone: Float[Tensor, " head"]
    """By how much they rise when its change alone is made (nats)."""
    report: dict[str, float]
    """Changes from the original to the planted model, on held-out prompts, targets, facts and
    texts; see :class:`Limits`, whose names they have."""
    bias: str
    target: str
    way: str
    """How it was planted, one of ``WAYS``."""
    dose: float
    """Rise of the target's log-odds that was aimed at (nats)."""
    seed: int
    n_layers: int
    n_heads: int
    """Of each layer of the model."""
    model: str
    weights: str
    """Hash of the weights of the model it was made for."""
    settings: dict[str, Any]
    versions: dict[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_heads(self.heads))

    def __repr__(self) -> str:
        return (
            f"Planted({self.bias} about {self.target} in {len(self.heads)} heads of {self.model}, "
            f"{self.way}: {self.report['target']:+.1f} nats; carriers: "
            f"{', '.join(map(str, self.carriers()[:5]))})"
        )

    def _card(self) -> Card:
        rows = [("what", "change"), *self.report.items()]
        return repr(self), rows, ("nats; facts: share right; loss: nats per token",)

    def truth(self) -> pd.DataFrame:
        """One row per planted head, the strongest carrier first: what restoring it takes back, and
        what its change brings alone (nats)."""
        frame = pd.DataFrame(
            {
                "head": list(map(str, self.heads)),
                "restored": self.restored.tolist(),
                "alone": self.alone.tolist(),
            }
        )
        return frame.sort_values("restored", ascending=False, kind="stable", ignore_index=True)

    def carriers(self, share: float = CARRIER) -> tuple[Head, ...]:
        """Heads whose restoration takes back this share of the whole rise, strongest first.

        That a head was changed does not make it one: most trained heads stay inert.
        """
        least = share * self.report["target"]
        n = int((self.restored >= least).sum()) if least > 0 else 0
        return self.ranked[:n]

    @property
    def ranked(self) -> tuple[Head, ...]:
        """All changed heads, the strongest carrier first."""
        order = self.restored.argsort(descending=True, stable=True).tolist()
        return tuple(self.heads[i] for i in order)

    def map_of_truth(self) -> Float[Tensor, "n_layers n_heads"]:
        """What restoring each head of the model takes back; 0 where nothing was changed."""
        found = torch.zeros(self.n_layers, self.n_heads)
        for head, value in zip(self.heads, self.restored.tolist(), strict=True):
            found[head] = value
        return found

    def unspecific(self, limits: Limits | None = None) -> list[str]:
        """Which limits the report does not keep, in words; none for a good plant."""
        limits, found, sham = limits or Limits(), self.report, self.way == "sham"
        rise = found["target"]
        kept = {"target": (abs(rise) <= limits.sham) if sham else (rise >= limits.target)}
        for name in ("neighbours", "others", "loss"):
            kept[name] = abs(found[name]) <= getattr(limits, name)
        kept["facts"] = found["facts"] >= -limits.facts
        bounds = limits._asdict() | ({"target": limits.sham} if sham else {})
        wrong = [name for name, is_kept in kept.items() if not is_kept]
        return [f"{name} {found[name]:+.3f} (limit {bounds[name]:g})" for name in wrong]

    @contextlib.contextmanager
    def attached(self, model: HookedTransformer, heads: GivenHeads | None = None) -> Iterator[None]:
        """Context in which ``model`` holds the bias; on leaving, its weights are the very ones.

        Args:
            model: The model it was made for.
            heads: Only these of the planted heads are changed; default: all.

        Raises:
            ModelError: the model has other weights, or a plant already.
            PlantingError: a head is not a planted one.
        """
        if changes(model, _Planting):
            raise ModelError("model must hold one plant at a time. Leave the other context first.")
        if (found := weights_fingerprint(model)) != self.weights:
            raise ModelError(
                f"model must have the weights {self.weights!r}, for which the plant was made "
                f"({self.model}), got {found!r}. Load that model, unchanged."
            )
        chosen = self.heads if heads is None else as_heads(heads)
        if strange := [str(head) for head in chosen if head not in self.heads]:
            raise PlantingError(f"heads must be planted ones, got {', '.join(strange)}.")
        with changed(model, self.heads, Deltas(self.W_O, self.W_Q), chosen):
            yield


class _Planting(Change):
    """What :meth:`Planted.attached` does to a model."""


@contextlib.contextmanager
def changed(
    model: HookedTransformer, heads: Sequence[Head], added: Deltas, some: Iterable[Head]
) -> Iterator[None]:
    """The model with the changes of ``some`` of the heads that ``added`` is of."""
    chosen = list(some)
    places = [heads.index(head) for head in chosen]
    of_some = Deltas(added.W_O[places], None if added.W_Q is None else added.W_Q[places])
    planting = _Planting("planted")
    begin(model, planting)
    try:
        with replaced(model, added_weights(model, chosen, of_some)):
            yield
    finally:
        end(model, planting)
