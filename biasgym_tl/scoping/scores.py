"""The result of BiasScope: a value for every attention head, and what it rests on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from biasgym_tl.errors import AttributionError, SettingError, check_within
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.notebook import Card, rows_of
from biasgym_tl.prompts import text_policy
from biasgym_tl.store import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

EFFECTS = {
    "direct": "direct effect at the answer position",
    "zero_ablation": "total effect of zeroing",
    "mean_ablation": "total effect of mean ablation",
    "screened_ablation": "total effect of mean ablation, of heads that patching screens",
    "attribution_patching": "total effect to first order",
    "path_patching": "effect through MLPs and norms alone",
    "slot_patching": "effect of what is read in the slot, to first order",
}
"""What the values of each method are."""
NO_TOKEN = "no injection"
"""What scores name as their token when a target stood in its place."""
OWN_PROMPTS = "own prompts"
"""What scores name as their token when whole prompts were given."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class HeadScores(Result):
    """What every head adds to the logit difference *biased minus neutral label*.

    All values are logits; positive pushes toward the stereotype. With ablations and attribution
    patching that is by how much the difference falls without the head.
    """

    _then = (".plot()", "select_heads(scores, 10)", "explore(scores, model, token)")
    _not_shown = (
        "What a head writes is not what it does: the order of these values does not say what "
        "silencing heads changes, nor what it costs."
    )

    pair_values: Float[Tensor, "pair n_layers n_heads"]
    """Each head on each pair, on the biased side."""
    neutral_values: Float[Tensor, "pair target n_layers n_heads"] | None = None
    """The same with each target of the neutral side in the slot; None: not computed."""
    attn_bias: Float[Tensor, "pair n_layers"] | None = None
    """``b_O`` of each layer. This and the other parts beside heads: direct attribution only."""
    mlps: Float[Tensor, "pair n_layers"] | None = None
    embed: Float[Tensor, " pair"] | None = None
    constant: Float[Tensor, " pair"] | None = None
    delta: Float[Tensor, " pair"]
    """The logit difference itself, on the biased side; what all parts sum to. Before a final soft
    cap if the model has one."""
    neutral_delta: Float[Tensor, "pair target"]
    """The same difference with each target of the neutral side in the slot."""
    reconstruction_error: Float[Tensor, " pair"] | None = None
    """``|sum of parts - delta|`` relative to the sum of the absolute parts."""
    prompts: tuple[str, ...]
    """The prompt of each pair, with its slot; or the first text of the pair, given whole."""
    neutral_prompts: tuple[str, ...] = ()
    """The second text of each pair that was given whole."""
    targets: tuple[tuple[str, ...], ...]
    """The targets on the neutral side of each pair."""
    label_targets: tuple[str, ...]
    """All targets that the neutral labels rest on."""
    biased_labels: tuple[str, ...]
    neutral_labels: tuple[str, ...]
    biased_ids: Int[Tensor, "pair ..."] | None = None
    """The first token of each biased label, or of several (``[pair, answer]``), whose mean logit
    counts; None in maps that were saved without."""
    neutral_ids: Int[Tensor, "pair ..."] | None = None
    left_out: tuple[str, ...] = ()
    """Prompts that were left out because both answers begin with the same token."""
    model: str
    bias: str
    """Name of the bias; of prompts that were given whole, both answers."""
    token: str
    """Which row stood in the slot: ``BiasToken.label``, ``"no injection"`` or ``"own prompts"``."""
    n_key_value_heads: int
    """Heads that share keys and values are one KV group."""
    settings: dict[str, Any]
    versions: dict[str, str]

    def __post_init__(self) -> None:
        if self.settings.get("method") not in EFFECTS:
            raise SettingError(
                f"settings must name a method of {list(EFFECTS)}, got {self.settings!r}."
            )
        for name in ("pair_values", "neutral_values"):
            values = getattr(self, name)
            if values is not None:
                _check_finite(name, values.flatten(0, -3))

    def check_text(self, model: HookedTransformer) -> None:
        """Refuse a model that writes other text around requests than it did for these scores.

        Raises:
            SettingError: it was loaded with another ``TextPolicy``.
        """
        text = dataclasses.asdict(text_policy(model))
        if self.settings.get("text", text) != text:
            raise SettingError(
                "model must write the text around requests as it did for the scores, with "
                f"{self.settings['text']}, got {text}. Load it with that TextPolicy."
            )

    @property
    def by_pair(self) -> Float[Tensor, "pair n_layers n_heads"]:
        """Each head on each pair: the biased side, or biased minus neutral if that is compared."""
        if self.settings.get("contrast") == "difference":
            return self.differences().mean(1)
        return self.pair_values

    def differences(self) -> Float[Tensor, "pair target n_layers n_heads"]:
        """Biased minus neutral side, for each pair and target: what statistics are made on.

        Raises:
            SettingError: the neutral side was not computed.
        """
        if self.neutral_values is None:
            raise SettingError(
                "contrast must be 'difference' for this, got 'biased': the neutral side was not "
                "computed. Use BiasScope(contrast='difference')."
            )
        return self.pair_values[:, None] - self.neutral_values

    @property
    def values(self) -> Float[Tensor, "n_layers n_heads"]:
        """Mean over pairs of :attr:`by_pair`."""
        return self.by_pair.mean(0)

    @property
    def standard_error(self) -> Float[Tensor, "n_layers n_heads"]:
        """Standard error of the mean over pairs; NaN for a single pair."""
        n = len(self.by_pair)
        if n == 1:
            return torch.full_like(self.values, torch.nan)
        return self.by_pair.std(0) / math.sqrt(n)

    @property
    def toward(self) -> str:
        """What positive values push toward: the attribute, or both answers."""
        return str(self.settings.get("attribute", self.bias))

    @property
    def basis(self) -> str:
        """What the mean is over, in words: ``"16 pairs"``, ``"1 prompt"``."""
        n, paired = len(self.prompts), self.neutral_prompts or self.token != OWN_PROMPTS
        return f"{n} {'pair' if paired else 'prompt'}{'' if n == 1 else 's'}"

    @property
    def effect(self) -> str:
        """What the values are: which effect, against what, on which run."""
        method, own = self.settings["method"], self.token == OWN_PROMPTS
        one, other, what = ("first", "second", "prompt") if own else ("biased", "neutral", "run")
        run = f"{one} {what}" if self.neutral_prompts or not own else "given prompts"
        run = "targets in the slot, no injection" if self.token == NO_TOKEN else run
        if self.settings.get("contrast") == "difference":
            run = f"{one} minus {other} {what}"
        where = ""
        if "ablation" in method:
            where = f" at {'the answer' if self.settings['answer_only'] else 'all positions'}"
        if method in ("attribution_patching", "path_patching"):
            # older maps name it "reference"
            to = self.settings.get("ablate_to", self.settings.get("reference"))
            where = f" of going to {to}"
        if (gradient := self.settings.get("gradient", "run")) != "run":
            where += f" (gradient: {gradient})"
        return f"{EFFECTS[method]}{where}, {run}"

    @property
    def coarse(self) -> str:
        """Of a map in 16 bits, how it agrees with the exact one, in words; otherwise empty."""
        found = self.settings.get("precision")
        if not found:
            return ""
        return (
            f"computed in {found['dtype']}: on {found['n_pairs']} pairs rank correlation "
            f"{found['rank_correlation']:.2f} with the exact map, "
            f"{found['k'] * found['overlap']:.0f} of its top {found['k']} heads"
        )

    def __repr__(self) -> str:
        top = ", ".join(f"{h} {self.values[h]:+.2f}" for h in self.top(3))
        error = self.reconstruction_error
        remark = "" if error is None else f"; reconstruction error {error.max():.1e}"
        remark += f"; {self.coarse}" if self.coarse else ""
        n = self.basis + (f", {len(self.left_out)} left out" if self.left_out else "")
        return (
            f"HeadScores({self.settings['method']}, {self.bias} on {self.model}, "
            f"{n}; {top}{remark})"
        )

    def _card(self) -> Card:
        best = self.to_df()[["rank", "head", "delta_logit", "standard_error", "kv_group"]].head(10)
        below = f"{self.effect}; logits, mean of pairs"
        return repr(self), rows_of(best), (below, self.coarse) if self.coarse else (below,)

    def top(self, k: int) -> tuple[Head, ...]:
        """The ``k`` heads that push most toward the stereotype, strongest first.

        Raises:
            SettingError: the model does not have ``k`` heads.
        """
        return top_heads(self.values, k)

    def kv_group(self, head: int) -> int:
        """Group of heads with common keys and values that ``head`` belongs to."""
        return head * self.n_key_value_heads // self.values.shape[1]

    def to_df(self) -> pd.DataFrame:
        """One row per head: name, mean and standard error of delta-logit, rank, KV group."""
        heads = all_heads(*self.values.shape)
        frame = head_table(delta_logit=self.values, standard_error=self.standard_error)
        frame.insert(1, "layer", [head.layer for head in heads])
        frame.insert(2, "index", [head.head for head in heads])
        frame.insert(3, "kv_group", [self.kv_group(head.head) for head in heads])
        frame["rank"] = frame["delta_logit"].rank(ascending=False, method="first").astype(int)
        return frame.sort_values("rank", ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Layer-by-head heatmap; options as in ``plots.plot_heads``."""
        from biasgym_tl.plots.heatmap import plot_heads

        return plot_heads(self, **options)


def _check_finite(name: str, values: Float[Tensor, "n n_layers n_heads"]) -> None:
    """Raise an :class:`AttributionError` that names the heads whose values are no numbers."""
    wrong = [Head(*at) for at in (~values.isfinite()).any(0).nonzero().tolist()]
    if wrong:
        raise AttributionError(
            f"{name} must be finite, got NaN or infinity of {', '.join(map(str, wrong[:3]))}"
            f"{' and more' if len(wrong) > 3 else ''}. Attribute again, in torch.float32."
        )


def top_heads(values: Float[Tensor, "n_layers n_heads"], k: int) -> tuple[Head, ...]:
    """The ``k`` heads with the highest values, highest first.

    Raises:
        SettingError: there are no ``k`` heads.
        AttributionError: a value is NaN or infinite.
    """
    _check_finite("values", values[None])
    check_within("k", k, 1, values.numel())
    heads = all_heads(*values.shape)
    return tuple(heads[i] for i in values.flatten().argsort(descending=True, stable=True)[:k])


def marked(heads: Iterable[Head], n_layers: int, n_heads: int) -> Bool[Tensor, "n_layers n_heads"]:
    """True at some heads."""
    found = torch.zeros(n_layers, n_heads, dtype=torch.bool)
    for head in heads:
        found[head] = True
    return found


def head_table(**values: Float[Tensor, "n_layers n_heads"]) -> pd.DataFrame:
    """One row per head, with its name and its values by their names."""
    (shape,) = {tuple(found.shape) for found in values.values()}
    columns = {name: found.flatten().tolist() for name, found in values.items()}
    return pd.DataFrame({"head": list(map(str, all_heads(*shape))), **columns})
