"""BiasScope: score every attention head, by what it writes or by what it does (section 3)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import SettingError
from biasgym_tl.hooks import head_means
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import text_policy
from biasgym_tl.scoping.ablation import ablated_deltas
from biasgym_tl.scoping.direct import (
    TOLERANCE,
    Parts,
    check_exact,
    continuation_attribution,
    direct_attribution,
)
from biasgym_tl.scoping.pairs import LABELS, NEUTRAL, Pairs, build_pairs
from biasgym_tl.scoping.patching import patching_effects
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.store import digest, versions
from biasgym_tl.text import answer_differences

METHODS = ("direct", "zero_ablation", "mean_ablation", "attribution_patching")
CONTRASTS = ("biased", "difference")
REFERENCES = ("zero", "mean", "neutral")
NO_TOKEN = "no injection"
"""What scores name as their token when a target stood in its place."""

Sequences = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasScope:
    """Settings of an attribution; :meth:`attribute` runs it.

    Raises:
        SettingError: on construction, if a setting is outside its range.
    """

    method: str = "direct"
    """``"direct"``: what a head writes straight to the logit difference, the paper's.
    ``"zero_ablation"``, ``"mean_ablation"``: by how much the difference falls when the head is
    silenced, one head at a time. ``"attribution_patching"``: that fall to first order."""
    contrast: str = "biased"
    """``"biased"``: values of the biased run, the paper's. ``"difference"``: minus those of the
    neutral run, which statistics need."""
    label: str = "first"
    """What answers count with: ``"first"`` token (the paper's); with contrasts also ``"token"``
    (each must be one) or ``"continuation"`` (the sum over all tokens; direct attribution only)."""
    neutral: str = "random"
    """Who stands on the neutral side: ``"random"``, ``"closest"`` or ``"several"``."""
    reference: str = "zero"
    """What attribution patching compares ``z`` with: ``"zero"``, ``"mean"`` (over neutral text) or
    ``"neutral"`` (the neutral run of the pair)."""
    answer_only: bool = False
    """Ablations silence the head at the answer position alone instead of at all positions."""
    n_targets: int = 8
    """Fitting targets that the neutral labels are taken from."""
    batch_size: int = 32
    """Pairs that a forward pass runs at once; other methods scale their batches by it. The values
    do not depend on it."""
    tolerance: float = TOLERANCE
    """Largest accepted reconstruction error of direct attribution."""
    seed: int = 0
    """Decides the targets of the neutral side."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("method", METHODS),
            ("contrast", CONTRASTS),
            ("label", LABELS),
            ("neutral", NEUTRAL),
            ("reference", REFERENCES),
        ):
            if getattr(self, name) not in allowed:
                raise SettingError(
                    f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}."
                )
        for name in ("n_targets", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, got {getattr(self, name)!r}.")
        if not self.tolerance > 0:
            raise SettingError(f"tolerance must be positive, got {self.tolerance!r}.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Refuse settings that do not go together."""
        to_neutral, ablates = self.reference == "neutral", "ablation" in self.method
        method = f"for the method {self.method!r}"
        combinations = (
            ("label", self.label == "continuation" and self.method != "direct",
             f"'first' or 'token' {method}", "Only direct attribution sums over tokens."),
            ("answer_only", self.answer_only and not ablates,
             f"False {method}", "Only ablations have positions."),
            ("reference", self.reference != "zero" and self.method != "attribution_patching",
             f"'zero' {method}", "It belongs to attribution patching."),
            ("contrast", to_neutral and self.contrast == "difference",
             "'biased' when reference is 'neutral'", "A run cannot be compared with itself."),
            ("neutral", to_neutral and self.neutral == "several",
             "'random' or 'closest' when reference is 'neutral'", "A pair has one reference run."),
        )  # fmt: skip
        for name, refused, allowed, reason in combinations:
            if refused:
                found = getattr(self, name)
                raise SettingError(f"{name} must be {allowed}, got {found!r}. {reason}")

    def attribute(
        self,
        model: HookedTransformer,
        bias: GivenBias,
        token: BiasToken | None,
        *,
        contrasts: Sequence[Contrast] = (),
        progress: bool = False,
    ) -> HeadScores:
        """Score every head on the bias's scoping prompts.

        Args:
            model: A model in fp32, without the token attached.
            bias: Gives the prompts and the words A.
            token: The BiasToken in the slot; None: a fitting target in its place, which scores
                the heads without any injection, as a control.
            contrasts: Prompts with a biased and a neutral answer each, such as
                ``read_contrasts(path)``; default: the bias's scoping prompts, with the words A.
                Where both answers begin with the same token, a prompt is left out and reported.
            progress: Show a bar while heads are ablated.

        Raises:
            AttributionError: the model is not supported, or the parts do not sum to the model's
                own logit difference.
            ModelError: the model has no tokenizer, or no word of the bias can count on it.
            TokenError: the token does not fit the model.
            SettingError: the contrasts do not fit the label, or a comparison with the neutral run
                is asked for without a token.
        """
        bias = as_bias(bias)
        check_exact(model)
        if token is None and (self.contrast == "difference" or self.reference == "neutral"):
            raise SettingError(
                "token must not be None for a comparison with the neutral run, got None: the same "
                "run would stand on both sides."
            )
        means = None
        if "mean" in (self.reference, self.method.removesuffix("_ablation")):
            means = head_means(model)
        pairs = build_pairs(
            model,
            bias,
            token,
            n_targets=self.n_targets,
            neutral=self.neutral,
            contrasts=contrasts,
            label=self.label,
            seed=self.seed,
        )
        sides = [[row[i] for row in pairs.neutral] for i in range(len(pairs.neutral[0]))]
        with token.attached(model) if token else contextlib.nullcontext():
            reference = sides[0] if self.reference == "neutral" else means
            values, delta, parts = self._values(model, pairs.biased, pairs, reference, progress)
        neutral_values = None
        if self.contrast == "difference":
            found = [self._values(model, side, pairs, means, progress)[:2] for side in sides]
            neutral_values = torch.stack([values for values, _ in found], 1)
            neutral_deltas = [delta for _, delta in found]
        else:
            neutral_deltas = [self._deltas(model, side, pairs) for side in sides]
        words = model.tokenizer.batch_decode
        return HeadScores(
            pair_values=values,
            neutral_values=neutral_values,
            attn_bias=parts.attn_bias if parts else None,
            mlps=parts.mlps if parts else None,
            embed=parts.embed if parts else None,
            constant=parts.constant if parts else None,
            delta=delta,
            neutral_delta=torch.stack(neutral_deltas, 1),
            reconstruction_error=parts.error() if parts else None,
            prompts=pairs.prompts,
            targets=pairs.targets,
            label_targets=pairs.label_targets,
            biased_labels=tuple(words(pairs.biased_answers)),
            neutral_labels=tuple(words(pairs.neutral_answers)),
            biased_ids=pairs.biased_ids.cpu(),
            neutral_ids=pairs.neutral_ids.cpu(),
            left_out=pairs.left_out,
            model=model.cfg.model_name,
            bias=bias.name,
            token=token.label if token else NO_TOKEN,
            n_key_value_heads=model.cfg.n_key_value_heads or model.cfg.n_heads,
            settings={
                **dataclasses.asdict(self),
                "bias_fingerprint": bias.fingerprint(),
                "text": dataclasses.asdict(text_policy(model)),
                "contrasts": digest([c[:3] for c in contrasts]) if contrasts else None,
            },
            versions=versions(),
        )

    def _values(
        self,
        model: HookedTransformer,
        sequences: Sequences,
        pairs: Pairs,
        reference: Float[Tensor, "n_layers n_heads d_head"] | Sequences | None,
        progress: bool,
    ) -> tuple[Float[Tensor, "pair n_layers n_heads"], Float[Tensor, " pair"], Parts | None]:
        """Value of every head on ``sequences``, the logit difference there, and its other parts."""
        ids = pairs.biased_ids, pairs.neutral_ids
        if self.method == "direct":
            exact: dict[str, Any] = {"batch_size": self.batch_size, "tolerance": self.tolerance}
            if self.label == "continuation":
                answers = pairs.biased_answers, pairs.neutral_answers
                parts = continuation_attribution(model, sequences, *answers, **exact)
            else:
                parts = direct_attribution(model, sequences, *ids, **exact)
            return parts.heads, parts.delta, parts
        delta = self._deltas(model, sequences, pairs)
        if self.method == "attribution_patching":
            at_once = max(1, self.batch_size // 4)  # a gradient holds more
            effects = patching_effects(
                model, sequences, *ids, reference=reference, batch_size=at_once
            )
            return effects, delta, None
        without = ablated_deltas(
            model,
            sequences,
            *ids,
            reference=reference,
            answer_only=self.answer_only,
            rows_at_once=4 * self.batch_size,
            progress=progress,
        )
        return delta[:, None, None] - without, delta, None

    def _deltas(
        self, model: HookedTransformer, sequences: Sequences, pairs: Pairs
    ) -> Float[Tensor, " pair"]:
        if self.label == "continuation":
            answers = pairs.biased_answers, pairs.neutral_answers
            return continuation_attribution(
                model, sequences, *answers, batch_size=self.batch_size, tolerance=self.tolerance
            ).delta
        return answer_differences(
            model, sequences, pairs.biased_ids, pairs.neutral_ids, batch_size=self.batch_size
        )
