"""How far a condition is from the original model on neutral text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.evaluation.measurement import TEXT, Items, Measurement
from biasgym_tl.lens import HookedTransformer, Recording
from biasgym_tl.passages import load_passages
from biasgym_tl.rivals.damage import Damage


class _TextKl(Measurement):
    """Runs the model both ways."""

    def measured(
        self,
        model: HookedTransformer,
        condition: Condition,
        neutral: Float[Tensor, "n_layers n_heads d_head"] | None,
        recording: Recording,
    ) -> Items:
        found = Damage(model, self.held_out["texts"]).by_text(
            partial(condition.steered, model, neutral), condition.first_layer(model)
        )
        return {self.measures[0].key: found}


def text_kl() -> Measurement:
    """KL(original || condition) of each neutral text that nothing was set on (nats per token)."""
    texts: Sequence[str] = load_passages("damage")
    return _TextKl(
        name="KL",
        needs="text",
        run=lambda model, condition: {},
        measures=(Measure("damage_kl", "KL on neutral text", "nats per token", decimals=4),),
        fingerprint=list(texts),
        cost=2 * TEXT * len(texts),
        held_out={"texts": texts},
    )
