"""BiasScope: score every attention head, by what it writes or by what it does (section 3)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import SettingError, check_at_least, check_literals
from biasgym_tl.heads import Head
from biasgym_tl.hooks import head_means
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.notebook import described
from biasgym_tl.precision import SHORT
from biasgym_tl.progress import Finished, make_now
from biasgym_tl.prompts import text_policy
from biasgym_tl.scoping.ablation import ablated_deltas
from biasgym_tl.scoping.checks import check_equations, with_precision
from biasgym_tl.scoping.direct import (
    PARTS_BESIDE_HEADS,
    TOLERANCE,
    Parts,
    continuation_attribution,
    direct_attribution,
)
from biasgym_tl.scoping.pairs import Pairs, build_pairs, written_down
from biasgym_tl.scoping.patching import N_STEPS, Reference, Sequences, patching_effects
from biasgym_tl.scoping.paths import path_effects, slot_effects
from biasgym_tl.scoping.scores import NO_TOKEN, HeadScores, marked, top_heads
from biasgym_tl.store import digest, versions
from biasgym_tl.text import answer_differences

COARSE = 0.05
"""Largest accepted reconstruction error in 16 bits, which only a gross fault exceeds."""


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasScope:
    """Settings of an attribution; :meth:`attribute` runs it.

    Raises:
        SettingError: on construction, if a setting is outside its range.
    """

    method: Literal[
        "direct",
        "zero_ablation",
        "mean_ablation",
        "screened_ablation",
        "attribution_patching",
        "path_patching",
        "slot_patching",
    ] = "direct"
    """``"direct"``: what a head writes straight to the logit difference, the paper's.
    ``"zero_ablation"``, ``"mean_ablation"``: by how much the difference falls when the head is
    silenced, one head at a time. ``"attribution_patching"``: that fall to first order.
    ``"screened_ablation"``: mean ablation of the heads that patching to the mean gives the largest
    values of either sign, since its sign can be wrong; the others count 0. ``"path_patching"``: the
    fall when the head is silenced and all other heads are held as they were. ``"slot_patching"``:
    to first order, the fall when the head reads the neutral run's slot instead of this one."""
    contrast: Literal["biased", "difference"] = "biased"
    """``"biased"``: values of the biased run, the paper's. ``"difference"``: minus those of the
    neutral run, which statistics need."""
    label: Literal["first", "token", "continuation"] = "first"
    """What answers count with: ``"first"`` token (the paper's); with contrasts also ``"token"``
    (each must be one) or ``"continuation"`` (the sum over all tokens; direct attribution only)."""
    neutral: Literal["random", "closest", "several"] = "random"
    """Who stands on the neutral side: ``"random"``, ``"closest"`` or ``"several"``."""
    ablate_to: Literal["zero", "mean", "neutral"] = "zero"
    """What attribution and path patching compare ``z`` with: ``"zero"``, ``"mean"`` (over neutral
    text) or ``"neutral"`` (the neutral run of the pair)."""
    gradient: Literal["run", "both", "inputs", "activations", "dropped"] = "run"
    """Where attribution patching takes its gradient: in the ``"run"`` (AtP); in ``"both"`` runs of
    the pair; over ``"inputs"``, embeddings on the line from the neutral run (EAP-IG, arXiv
    2403.17806); over ``"activations"`` on the line from what ``z`` is compared with, one layer at a
    time (arXiv 2403.19647); with the branches of each layer ``"dropped"`` in turn (AtP*'s GradDrop,
    arXiv 2403.00745), a mean size, with the sign of the run's."""
    n_steps: int = N_STEPS
    """Points on such a line; the last is the run itself."""
    answer_only: bool = False
    """Ablations silence the head at the answer position alone instead of at all positions."""
    n_screened: int = 40
    """Heads that ``"screened_ablation"`` silences."""
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
        check_literals(self)
        check_at_least(1, n_targets=self.n_targets, batch_size=self.batch_size)
        check_at_least(1, n_screened=self.n_screened, n_steps=self.n_steps)
        if not self.tolerance > 0:
            raise SettingError(f"tolerance must be positive, got {self.tolerance!r}.")
        to_neutral, ablates = self.to_neutral, "ablation" in self.method
        patches = self.method in ("attribution_patching", "path_patching")
        method = f"for the method {self.method!r}"
        for name, refused, wanted, reason in (
            ("label", self.label == "continuation" and self.method != "direct",
             f"'first' or 'token' {method}", "Only direct attribution sums over tokens."),
            ("answer_only", self.answer_only and not ablates,
             f"False {method}", "Only ablations have positions."),
            ("ablate_to", self.ablate_to != "zero" and not patches,
             f"'zero' {method}", "It belongs to attribution and path patching."),
            ("gradient", self.gradient != "run" and self.method != "attribution_patching",
             f"'run' {method}", "It belongs to attribution patching."),
            ("gradient", self.gradient in ("both", "inputs") and not to_neutral,
             f"another when ablate_to is {self.ablate_to!r}", "Only a neutral run has inputs."),
            ("contrast", to_neutral and self.contrast == "difference",
             "'biased' for a patch from the neutral run", "It cannot be compared with itself."),
            ("neutral", to_neutral and self.neutral == "several",
             "'random' or 'closest' for a patch from the neutral run", "A pair has one of them."),
        ):  # fmt: skip
            if refused:
                found = getattr(self, name)
                raise SettingError(f"{name} must be {wanted}, got {found!r}. {reason}")

    @property
    def to_neutral(self) -> bool:
        """Whether the neutral run of a pair takes the place of a part of the biased one."""
        return self.ablate_to == "neutral" or self.method == "slot_patching"

    def attribute(
        self,
        model: HookedTransformer,
        bias: GivenBias,
        token: BiasToken | None,
        *,
        contrasts: Sequence[Contrast] = (),
        finished: Finished = make_now,
        progress: bool = True,
    ) -> HeadScores:
        """Score every head on the bias's scoping prompts.

        Args:
            model: Without the token attached. If it computes in 16 bits the map is coarse: how it
                agrees with the exact one is measured, and kept in ``settings["precision"]``.
            bias: Gives the prompts and the words A.
            token: The BiasToken in the slot; None: a fitting target in its place, which scores
                the heads without any injection, as a control.
            contrasts: Prompts with both answers each, such as ``read_contrasts(path)``; default:
                the bias's scoping prompts, with the words A. Where both answers begin with the
                same token, a prompt is left out and reported.
            finished: Called with the name of what does not depend on the token, with what it uses
                and how it is made; may return what is stored instead.
            progress: Show a bar, where it takes more than 3 seconds.

        Raises:
            AttributionError: the model is not supported, or the parts do not sum to the difference.
            ModelError: the model has no tokenizer, or no word of the bias can count on it.
            BiasFileError: the bias has no prompts or targets to scope on.
            TokenError: the token does not fit the model.
            SettingError: the contrasts do not fit the label, or there is no token to compare.
        """
        bias = as_bias(bias)
        check_equations(model)
        self.check_slot(token)
        of_pairs = {name: getattr(self, name) for name in ("n_targets", "neutral", "label", "seed")}
        pairs = build_pairs(
            model, bias, token, contrasts=contrasts, finished=finished, progress=progress,
            **of_pairs,
        )  # fmt: skip
        about = {
            "attribute": bias.attribute,
            "bias_fingerprint": bias.fingerprint(),
            "contrasts": digest([c[:3] for c in contrasts]) if contrasts else None,
        }
        row = token.label if token else NO_TOKEN
        return self.score(model, pairs, token, about, progress=progress, bias=bias.name, token=row)

    def check_slot(self, token: BiasToken | None) -> None:
        """Refuse to compare a run without a BiasToken with the neutral run, which it is.

        Raises:
            SettingError: there is no token, and the settings compare both runs.
        """
        if token is None and (self.contrast == "difference" or self.to_neutral):
            raise SettingError(
                "token must not be None for a comparison with the neutral run, got None: the same "
                "run would stand on both sides."
            )

    def score(
        self,
        model: HookedTransformer,
        pairs: Pairs,
        row: BiasToken | None,
        about: Mapping[str, Any],
        *,
        progress: bool = False,
        **names: Any,
    ) -> HeadScores:
        """Score every head on pairs that are built.

        Args:
            model: As :meth:`attribute` takes it.
            pairs: The pairs; without a neutral side the settings must not ask for one.
            row: Is attached while the biased side runs.
            about: What beside these settings led to the pairs; the scores keep it.
            progress: Show a bar, where it takes more than 3 seconds.
            names: ``bias`` and ``token`` of the scores.
        """
        about = {**about, "text": dataclasses.asdict(text_policy(model))}
        score = partial(self._scored, model, row, about, names)
        return with_precision(model, pairs, score(progress, pairs), partial(score, False))

    def _scored(
        self,
        model: HookedTransformer,
        row: BiasToken | None,
        about: Mapping[str, Any],
        names: Mapping[str, Any],
        progress: bool,
        pairs: Pairs,
    ) -> HeadScores:
        to_neutral, differs = self.to_neutral, self.contrast == "difference"
        screens = self.method == "screened_ablation"
        needs_means = screens or "mean" in (self.method[:4], self.ablate_to)
        means = head_means(model) if needs_means else None
        sides = list(zip(*pairs.neutral, strict=True))
        with row.attached(model) if row else contextlib.nullcontext():
            heads = self._screened(model, pairs, means, progress) if screens else None
            run = partial(self._run, model, pairs, progress, heads)
            biased = run(pairs.biased, sides[0] if to_neutral else means)
        each = tqdm(sides, desc="neutral runs", delay=3, disable=not progress)
        neutral = [run(side, means) for side in each] if differs else []
        deltas = [one.delta for one in neutral] or [self._delta(model, pairs, s) for s in each]
        no_side = biased.delta.new_zeros(len(biased.delta), 0)
        return HeadScores(
            pair_values=biased.values,
            neutral_values=torch.stack([one.values for one in neutral], 1) if differs else None,
            delta=biased.delta,
            neutral_delta=torch.stack(deltas, 1) if deltas else no_side,
            **biased.others,
            **written_down(model, pairs),
            **names,
            settings={**dataclasses.asdict(self), **about},
            versions=versions(),
        )

    def _run(
        self,
        model: HookedTransformer,
        pairs: Pairs,
        progress: bool,
        heads: Sequence[Head] | None,
        sequences: Sequences,
        reference: Reference,
    ) -> _Run:
        if self.method == "direct":
            parts = self._parts(model, pairs, progress, sequences)
            others = {name: getattr(parts, name) for name in PARTS_BESIDE_HEADS}
            others["reconstruction_error"] = parts.error()
            return _Run(parts.heads, parts.delta, others)
        delta, ids = self._delta(model, pairs, sequences), (pairs.biased_ids, pairs.neutral_ids)
        if "patching" in self.method:
            return _Run(self._patched(model, pairs, progress, sequences, reference), delta, {})
        without = ablated_deltas(
            model,
            sequences,
            *ids,
            heads=heads,
            reference=reference,
            answer_only=self.answer_only,
            rows_at_once=4 * self.batch_size,
            progress=progress,
        )
        values = delta[:, None, None] - without
        if heads is not None:
            values[:, ~marked(heads, *values.shape[1:])] = 0.0
        return _Run(values, delta, {})

    def _patched(
        self,
        model: HookedTransformer,
        pairs: Pairs,
        progress: bool,
        sequences: Sequences,
        reference: Reference,
    ) -> Float[Tensor, "pair n_layers n_heads"]:
        to_first_order = partial(patching_effects, gradient=self.gradient, n_steps=self.n_steps)
        along_paths = {"path_patching": path_effects, "slot_patching": slot_effects}
        return along_paths.get(self.method, to_first_order)(
            model,
            sequences,
            pairs.biased_ids,
            pairs.neutral_ids,
            reference=reference,
            batch_size=max(1, self.batch_size // 4),  # a gradient holds more
            progress=progress,
        )

    def _screened(
        self,
        model: HookedTransformer,
        pairs: Pairs,
        means: Float[Tensor, "n_layers n_heads d_head"] | None,
        progress: bool,
    ) -> tuple[Head, ...]:
        """The heads to silence, the same on both sides."""
        size = self._patched(model, pairs, progress, pairs.biased, means).mean(0).abs()
        return top_heads(size, min(self.n_screened, size.numel()))

    def _parts(
        self, model: HookedTransformer, pairs: Pairs, progress: bool, sequences: Sequences
    ) -> Parts:
        tolerance = max(self.tolerance, COARSE if model.cfg.dtype in SHORT else 0.0)
        options: dict[str, Any] = {"batch_size": self.batch_size, "tolerance": tolerance}
        options["progress"] = progress
        if self.label == "continuation":
            answers = pairs.biased_answers, pairs.neutral_answers
            return continuation_attribution(model, sequences, *answers, **options)
        ids = pairs.biased_ids, pairs.neutral_ids
        return direct_attribution(model, sequences, *ids, **options)

    def _delta(
        self, model: HookedTransformer, pairs: Pairs, sequences: Sequences
    ) -> Float[Tensor, " pair"]:
        if self.label == "continuation":
            return self._parts(model, pairs, False, sequences).delta
        ids = pairs.biased_ids, pairs.neutral_ids
        return answer_differences(model, sequences, *ids, batch_size=self.batch_size)


class _Run(NamedTuple):
    """What is found on one side of all pairs."""

    values: Float[Tensor, "pair n_layers n_heads"]
    delta: Float[Tensor, " pair"]
    others: dict[str, Any]
    """Parts beside heads, and the reconstruction error, of direct attribution."""
