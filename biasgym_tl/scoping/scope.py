"""BiasScope: score every attention head (paper, section 3)."""

from __future__ import annotations

import contextlib
import dataclasses

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SettingError
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.scoping.direct import TOLERANCE, check_exact, direct_attribution
from biasgym_tl.scoping.pairs import build_pairs
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.store import versions

NO_TOKEN = "no injection"
"""What scores name as their token when a target stood in its place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasScope:
    """Settings of an attribution; :meth:`attribute` runs it.

    Raises:
        SettingError: on construction, if a setting is outside its range.
    """

    method: str = "direct"
    """``"direct"``: contribution written straight to the logit difference, the paper's."""
    n_targets: int = 8
    """Fitting targets that the neutral labels are taken from."""
    batch_size: int = 32
    """Pairs run at once; the values do not depend on it."""
    tolerance: float = TOLERANCE
    """Largest accepted reconstruction error."""
    seed: int = 0
    """Decides the targets of the neutral side."""

    def __post_init__(self) -> None:
        if self.method != "direct":
            raise SettingError(f"method must be 'direct', got {self.method!r}.")
        for name in ("n_targets", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, got {getattr(self, name)!r}.")
        if not self.tolerance > 0:
            raise SettingError(f"tolerance must be positive, got {self.tolerance!r}.")

    def attribute(
        self, model: HookedTransformer, bias: Bias, token: BiasToken | None
    ) -> HeadScores:
        """Score every head on the bias's scoping prompts.

        Args:
            model: A pre-norm model in fp32, without the token attached.
            bias: Gives the prompts and the words A.
            token: The BiasToken in the slot; None: a fitting target in its place, which scores
                the heads without any injection, as a control.

        Raises:
            AttributionError: the model is not supported, or the parts do not sum to the model's
                own logit difference.
            TokenError: the token does not fit the model.
        """
        check_exact(model)
        pairs = build_pairs(model, bias, token, n_targets=self.n_targets, seed=self.seed)
        with token.attached(model) if token else contextlib.nullcontext():
            parts = direct_attribution(
                model,
                pairs.biased,
                pairs.biased_ids,
                pairs.neutral_ids,
                batch_size=self.batch_size,
                tolerance=self.tolerance,
            )
        words = model.tokenizer.batch_decode
        return HeadScores(
            pair_values=parts.heads,
            attn_bias=parts.attn_bias,
            mlps=parts.mlps,
            embed=parts.embed,
            constant=parts.constant,
            delta=parts.delta,
            neutral_delta=pairs.neutral_delta.double().cpu(),
            reconstruction_error=parts.error(),
            prompts=pairs.prompts,
            targets=pairs.targets,
            label_targets=pairs.label_targets,
            biased_labels=tuple(words(pairs.biased_ids[:, None])),
            neutral_labels=tuple(words(pairs.neutral_ids[:, None])),
            model=model.cfg.model_name,
            bias=bias.name,
            token=token.label if token else NO_TOKEN,
            n_key_value_heads=model.cfg.n_key_value_heads or model.cfg.n_heads,
            settings={**dataclasses.asdict(self), "bias_fingerprint": bias.fingerprint()},
            versions=versions(),
        )
