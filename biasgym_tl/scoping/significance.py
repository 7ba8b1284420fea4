"""Which heads differ between the biased and the neutral run, beyond what prompts explain."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.chance import benjamini_hochberg, prompt_flip_test
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.scoping.scores import HeadScores, top_heads
from biasgym_tl.stats import crossed_interval


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Significance:
    """Per head, on biased minus neutral run (logits)."""

    mean: Float[Tensor, "n_layers n_heads"]
    low: Float[Tensor, "n_layers n_heads"]
    high: Float[Tensor, "n_layers n_heads"]
    """95% interval of the mean over prompts and, where there are several, targets."""
    p: Float[Tensor, "n_layers n_heads"]
    """Chance that *any* head reaches this without an effect (maximum statistic)."""
    q: Float[Tensor, "n_layers n_heads"]
    """Benjamini-Hochberg: all heads with ``q <= a`` hold a share of false ones of about ``a``."""
    settings: dict[str, Any]
    """Settings of the scores and of the test."""

    def heads(self, q: float = 0.05) -> tuple[Head, ...]:
        """Heads with at most this q-value, largest difference first."""
        ranked = top_heads(self.mean, self.mean.numel())
        return tuple(head for head in ranked if self.q[head] <= q)

    def to_df(self) -> pd.DataFrame:
        """One row per head."""
        heads = [str(head) for head in all_heads(*self.mean.shape)]
        columns = {
            name: getattr(self, name).flatten().tolist()
            for name in ("mean", "low", "high", "p", "q")
        }
        return pd.DataFrame({"head": heads, **columns}).sort_values("p", ignore_index=True)

    def __repr__(self) -> str:
        n, found = self.mean.numel(), len(self.heads())
        return f"Significance({found} of {n} heads with q <= 0.05; smallest p {self.p.min():.4f})"


def significance(
    scores: HeadScores, *, n_flips: int = 1999, n_resamples: int = 999, seed: int = 0
) -> Significance:
    """Test every head's difference of biased and neutral run.

    The biased run alone has no null hypothesis: its values differ from 0 on any prompt.

    Args:
        scores: With ``contrast="difference"``; ``neutral="several"`` lets the interval and the
            test hold for other targets as well.
        n_flips: Sign flips of whole prompts and targets.
        n_resamples: Of the bootstrap behind each interval.
        seed: The same seed, the same result.

    Raises:
        SettingError: the scores hold no neutral side, or fewer than two prompts.
    """
    values = scores.differences()
    test = prompt_flip_test(values, n_flips=n_flips, seed=seed)
    flat = values.flatten(2)
    ends = torch.tensor(
        [
            crossed_interval(flat[:, :, i], n_resamples=n_resamples, seed=seed)
            for i in range(flat.shape[2])
        ],
        dtype=torch.float64,
    )
    mean, low, high = (column.reshape(test.p.shape) for column in ends.T)
    return Significance(
        mean=mean,
        low=low,
        high=high,
        p=test.p,
        q=benjamini_hochberg(test.p_alone),
        settings={
            **scores.settings, "model": scores.model, "bias": scores.bias,
            "n_flips": n_flips, "n_resamples": n_resamples, "test_seed": seed,
        },
    )  # fmt: skip
