"""The result of BiasScope: a value for every attention head, and what it rests on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.heads import Head
from biasgym_tl.store import TensorResult


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class HeadScores(TensorResult):
    """Contribution of every head to the logit difference *biased minus neutral first token*.

    All values are logits; positive pushes toward the stereotype.
    """

    pair_values: Float[Tensor, "pair n_layers n_heads"]
    """Each head on each pair, on the biased side."""
    attn_bias: Float[Tensor, "pair n_layers"]
    """``b_O`` of each layer."""
    mlps: Float[Tensor, "pair n_layers"]
    embed: Float[Tensor, " pair"]
    constant: Float[Tensor, " pair"]
    delta: Float[Tensor, " pair"]
    """The logit difference itself, on the biased side; what all parts sum to."""
    neutral_delta: Float[Tensor, " pair"]
    """The same difference with a target in the slot."""
    reconstruction_error: Float[Tensor, " pair"]
    """``|sum of parts - delta|`` relative to the sum of the absolute parts."""
    prompts: tuple[str, ...]
    targets: tuple[str, ...]
    label_targets: tuple[str, ...]
    """All targets that the neutral labels rest on."""
    biased_labels: tuple[str, ...]
    neutral_labels: tuple[str, ...]
    model: str
    bias: str
    token: str
    """Which row stood in the slot: ``BiasToken.label``, or ``"no injection"``."""
    n_key_value_heads: int
    """Heads that share keys and values are one KV group."""
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def values(self) -> Float[Tensor, "n_layers n_heads"]:
        """Mean over pairs."""
        return self.pair_values.mean(0)

    @property
    def standard_error(self) -> Float[Tensor, "n_layers n_heads"]:
        """Standard error of the mean over pairs; NaN for a single pair."""
        return self.pair_values.std(0) / math.sqrt(len(self.pair_values))

    def __repr__(self) -> str:
        top = ", ".join(f"{h} {self.values[h]:+.2f}" for h in self.top(3))
        return (
            f"HeadScores({self.settings.get('method')}, {self.bias} on {self.model}, "
            f"{len(self.pair_values)} pairs; {top}; "
            f"reconstruction error {self.reconstruction_error.max():.1e})"
        )

    def top(self, k: int) -> tuple[Head, ...]:
        """The ``k`` heads that push most toward the stereotype, strongest first.

        Raises:
            SettingError: the model does not have ``k`` heads.
        """
        n_layers, n_heads = self.values.shape
        if not 1 <= k <= n_layers * n_heads:
            raise SettingError(f"k must be in 1..{n_layers * n_heads}, got {k!r}.")
        order = self.values.flatten().argsort(descending=True, stable=True)[:k]
        return tuple(Head(*divmod(i, n_heads)) for i in order.tolist())

    def kv_group(self, head: int) -> int:
        """Group of heads with common keys and values that ``head`` belongs to."""
        return head * self.n_key_value_heads // self.values.shape[1]

    def to_df(self) -> pd.DataFrame:
        """One row per head: name, mean and standard error of delta-logit, rank, KV group."""
        n_layers, n_heads = self.values.shape
        frame = pd.DataFrame(
            {
                "head": [str(Head(la, h)) for la in range(n_layers) for h in range(n_heads)],
                "layer": [la for la in range(n_layers) for _ in range(n_heads)],
                "index": list(range(n_heads)) * n_layers,
                "kv_group": [self.kv_group(h) for h in range(n_heads)] * n_layers,
                "delta_logit": self.values.flatten().tolist(),
                "standard_error": self.standard_error.flatten().tolist(),
            }
        )
        frame["rank"] = frame["delta_logit"].rank(ascending=False, method="first").astype(int)
        return frame.sort_values("rank", ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Layer-by-head heatmap; options as in ``plots.heatmap.plot_heads``."""
        from biasgym_tl.plots.heatmap import plot_heads

        return plot_heads(self, **options)
