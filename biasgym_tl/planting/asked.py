"""What a study of plants can ask: maps of heads, and searches for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from biasgym_tl.allowed import GRADIENTS
from biasgym_tl.steering.budget import BudgetSearch
from biasgym_tl.steering.factors import FactorSearch

METHODS: dict[str, dict[str, Any]] = {
    "direct": {"method": "direct", "contrast": "difference"},
    "patching to mean": {
        "method": "attribution_patching", "ablate_to": "mean", "contrast": "difference"
    },
    "patching to neutral": {"method": "attribution_patching", "ablate_to": "neutral"},
    **{
        f"patching to neutral, {gradient}": {
            "method": "attribution_patching", "ablate_to": "neutral", "gradient": gradient
        }
        for gradient in GRADIENTS[1:]
    },
    "patching to mean, activations": {
        "method": "attribution_patching", "ablate_to": "mean", "gradient": "activations"
    },
    "path patching": {"method": "path_patching", "ablate_to": "mean", "contrast": "difference"},
    "slot patching": {"method": "slot_patching"},
    "zero ablation": {"method": "zero_ablation"},
    "mean ablation": {"method": "mean_ablation"},
    "screened ablation": {"method": "screened_ablation", "contrast": "difference"},
}  # fmt: skip
"""Settings of ``BiasScope`` by name; a difference holds the biased run too."""
SWEEPS = ("zero ablation", "mean ablation")
"""Those that run the model once a head, which are not asked of the model before planting."""
AMONG, SCREEN = 20, "screened ablation"
"""Highest heads of this map, from which one of the searches may choose."""
FROM_SCREEN = f"learned factors among {AMONG}"
_factors = partial(FactorSearch, n_sentences=6, n_texts=1, n_facts=3, off_target=0.0)
SEARCHES: dict[str, Callable[..., FactorSearch | BudgetSearch]] = {
    "learned factors": _factors,
    FROM_SCREEN: _factors,
    "damage budget": partial(BudgetSearch, max_off_target=None),
}
"""Searches for as many heads as there are carriers; factors with half of the usual batches."""
