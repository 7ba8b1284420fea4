"""How concentrated a bias is: in few heads, or spread over many."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SettingError, check_at_least


class Concentration(NamedTuple):
    """Of the heads that push toward the stereotype (positive values)."""

    curve: Float[Tensor, " k"]
    """Share of the positive sum in the top 1, 2, ... heads."""
    effective_heads: float
    """Participation ratio ``(sum v)^2 / sum v^2``: n equal heads give n."""

    def share(self, k: int) -> float:
        """Share of the positive sum in the top ``k`` heads (1 or more)."""
        check_at_least(1, k=k)
        return self.curve[min(k, len(self.curve)) - 1].item()

    def k_for(self, share: float) -> int:
        """The smallest number of heads that hold this share."""
        return int((self.curve < share - 1e-9).sum()) + 1

    def __repr__(self) -> str:
        held = ", ".join(f"{share:.0%} in {self.k_for(share)}" for share in (0.5, 0.8, 0.9))
        return f"Concentration(effective heads {self.effective_heads:.1f}; {held})"


def concentration(values: Float[Tensor, "n_layers n_heads"]) -> Concentration:
    """Measure how concentrated the positive values are.

    Noise alone spreads values over many heads: compare methods on the same prompts, and look at
    the reliability of each map (:func:`compare`) first.

    Raises:
        SettingError: no value is positive.
    """
    positive = values.flatten().double().clamp(min=0).sort(descending=True).values
    total = positive.sum()
    if not total > 0:
        raise SettingError(
            f"values must hold a positive one, got at most {values.max():.3g}: no head pushes "
            "toward the stereotype."
        )
    return Concentration(positive.cumsum(0) / total, (total**2 / positive.square().sum()).item())
