"""Attribution patching: the effect of silencing every head, to first order, from gradients.

The change of the logit difference when ``z`` of a head becomes ``z_ref`` at every position is, to
first order, ``(z_ref - z) . g`` summed over positions. It estimates a *total* effect. By ``g`` the
methods of this kind differ: ``d delta / d z`` in the run itself, in one backward pass, or a mean of
such gradients elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import starmap
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.batches import AnswerBatch, answer_batches
from biasgym_tl.errors import AttributionError
from biasgym_tl.hooks import collected
from biasgym_tl.lens import HookedTransformer, logit_difference

BATCH_SIZE = 8
N_STEPS = 5
"""Points on a line over which gradients are averaged."""
Sequences = Sequence[Sequence[int]]
Reference: TypeAlias = Float[Tensor, "n_layers n_heads d_head"] | Sequences | None
"""What heads write when they are silenced. None: nothing; a tensor: always the same, by head;
sequences: what they write in the run of another one for each pair."""


def patching_effects(
    model: HookedTransformer,
    sequences: Sequences,
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    *,
    reference: Reference = None,
    gradient: str = "run",
    n_steps: int = N_STEPS,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Float[Tensor, "pair n_layers n_heads"]:
    """First-order estimate of what each head adds to the logit difference ``b - n``.

    ``(z - z_ref) . g``, summed over positions: positive if the difference would fall without the
    head.

    Args:
        model: In 16 bits values are as coarse as its activations.
        sequences: Token ids; the last position of each is the answer position.
        biased_ids: ``b``.
        neutral_ids: ``n``.
        reference: ``z_ref``; sequences may differ from their counterparts in the slot alone.
        gradient: ``g``, as in :class:`biasgym_tl.BiasScope`.
        n_steps: Points on the line of the gradients ``"inputs"`` and ``"activations"``.
        batch_size: Sequences at once.
        progress: Show a bar.

    Raises:
        AttributionError: a sequence has no counterpart.
    """
    cfg, reference = model.cfg, as_reference(model, sequences, reference)
    found = torch.zeros(len(sequences), cfg.n_layers, cfg.n_heads, dtype=torch.float64)
    given = model, sequences, biased_ids, neutral_ids
    for run in traced(*given, batch_size, "patch heads" if progress else None):
        z, at_run = run.gradients()
        neutral: Counterpart | None = None
        if not isinstance(reference, Tensor):
            neutral = Counterpart.of(run, sequences, reference)
        z_ref = reference if neutral is None else neutral.z
        shifts = [one - other.to(one) for one, other in zip(z, z_ref, strict=True)]
        if gradient == "dropped":
            effects = run.dropped(shifts, at_run)
        else:
            effects = run.effects(
                shifts, _gradients(gradient, run, shifts, at_run, neutral, n_steps)
            )
        found[run.batch.indices] = effects
    return found


def as_reference(
    model: HookedTransformer, sequences: Sequences, reference: Reference
) -> Float[Tensor, "n_layers n_heads d_head"] | Sequences:
    """The reference, with zeros for None.

    Raises:
        AttributionError: there is not one sequence for each of the ``sequences``.
    """
    if reference is None:
        return torch.zeros(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    if not isinstance(reference, Tensor) and len(reference) != len(sequences):
        raise AttributionError(
            f"reference must hold {len(sequences)} sequences, one a pair, got {len(reference)}. "
            "Pass the neutral side of every pair."
        )
    return reference


def _gradients(
    gradient: str,
    run: Traced,
    shifts: list[Tensor],
    at_run: list[Tensor],
    neutral: Counterpart | None,
    n_steps: int,
) -> list[Tensor]:
    """``g`` of every layer."""
    if gradient == "run":
        return at_run
    shares = [k / n_steps for k in range(1, n_steps)]  # the last point is the run itself
    if gradient == "activations":
        on_line = [run.moved(shifts, share) for share in shares]
    else:
        assert neutral is not None
        on_line = [neutral.gradients()] if gradient == "both" else [
            run.gradients(partial(torch.lerp, neutral.embeddings, weight=share))[1]
            for share in shares
        ]  # fmt: skip
    return [torch.stack(of_layer).mean(0) for of_layer in zip(at_run, *on_line, strict=True)]


def traced(
    model: HookedTransformer,
    sequences: Sequences,
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    batch_size: int,
    desc: str | None = None,
) -> Iterator[Traced]:
    """The sequences in batches, with a bar if it has a name."""
    batches = answer_batches(model, sequences, batch_size, shared=0)
    n = -(-len(sequences) // batch_size)
    for batch in tqdm(batches, desc=desc, total=n, delay=3, disable=desc is None):
        yield Traced(model, batch, biased_ids[batch.indices], neutral_ids[batch.indices])


class Traced(NamedTuple):
    """Some sequences, and what is asked of their answers."""

    model: HookedTransformer
    batch: AnswerBatch
    biased_ids: Int[Tensor, "batch ..."]
    neutral_ids: Int[Tensor, "batch ..."]

    def gradients(
        self, change: Callable[[Tensor], Tensor] = lambda embed: embed
    ) -> tuple[list[Tensor], list[Tensor]]:
        """``z`` of every layer and the gradient of the logit difference there, after a change of
        the embeddings."""
        with torch.enable_grad(), collected(self.model, "attn.hook_z") as z:
            delta = self._delta(change)
        gradient = torch.autograd.grad(delta, z)
        return [value.detach() for value in z], list(gradient)

    def moved(self, shifts: list[Tensor], share: float) -> list[Tensor]:
        """Gradients of every layer where its ``z``, and no other's, is at a share of the way from
        its reference."""
        found: list[Tensor] = []
        for layer, shift in enumerate(shifts):
            inside: list[Tensor] = []

            def move(
                z: Tensor, hook: Any, shift: Tensor = shift, at: list[Tensor] = inside
            ) -> Tensor:
                at.append((z - (1 - share) * shift).detach().requires_grad_())
                return at[-1]

            with torch.enable_grad():
                point = f"blocks.{layer}.attn.hook_z"
                with self.model.hooks(fwd_hooks=[(point, move)]):
                    delta = self._delta()
            found += torch.autograd.grad(delta, inside)
        return found

    def dropped(
        self, shifts: list[Tensor], at_run: list[Tensor]
    ) -> Float[Tensor, "batch layer head"]:
        """Mean size of the effects where no gradient passes one layer's branches, for each layer in
        turn (AtP*'s GradDrop, arXiv 2403.00745), with the sign of the effect in the run."""
        closed = [-1]

        def close(value: Tensor, hook: Any) -> Tensor:
            layer = hook.layer()
            value.register_hook(  # type: ignore[no-untyped-call]
                lambda g: torch.zeros_like(g) if closed[0] == layer else g
            )
            return value

        n = len(shifts)
        points = [f"blocks.{i}.hook_{part}_out" for i in range(n) for part in ("attn", "mlp")]
        points = [point for point in points if point in self.model.hook_dict]
        hooks = self.model.hooks(fwd_hooks=[(point, close) for point in points])
        with torch.enable_grad(), hooks, collected(self.model, "attn.hook_z") as z:
            delta = self._delta()
        size = torch.zeros(())
        for closed[0] in range(n):
            gradients = torch.autograd.grad(delta, z, retain_graph=True)
            size = size + self.effects(shifts, list(gradients)).abs()
        return self.effects(shifts, at_run).sign() * size / max(n - 1, 1)

    def effects(
        self, shifts: list[Tensor], gradients: list[Tensor]
    ) -> Float[Tensor, "batch layer head"]:
        """``(z - z_ref) . g`` of every head, over the positions that are no padding."""
        mask = self.batch.arguments["attention_mask"][..., None]
        found = [
            ((shift * g).sum(-1) * mask.to(g.device)).double().sum(1).cpu()
            for shift, g in zip(shifts, gradients, strict=True)
        ]
        return torch.stack(found, 1)

    def _delta(self, change: Callable[[Tensor], Tensor] = lambda embed: embed) -> Tensor:
        """Sum of the logit differences, which gradients can be asked of."""

        def trace(embed: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
            return change(embed).detach().requires_grad_()

        with self.model.hooks(fwd_hooks=[("hook_embed", trace)]):
            resid = self.model(**self.batch.arguments)
        at_answer = resid[torch.arange(len(self.batch.last)), self.batch.last]
        return logit_difference(self.model, at_answer, self.biased_ids, self.neutral_ids).sum()


class Counterpart:
    """The other runs of some pairs, moved to the positions of the first."""

    def __init__(
        self, run: Traced, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int
    ):
        """``width``: positions of the first runs."""
        model = run.model
        (batch,) = answer_batches(model, [other for _, other in pairs], len(pairs), shared=0)
        ids = (of_pair[batch.indices] for of_pair in (run.biased_ids, run.neutral_ids))
        self.run = Traced(model, batch, *ids)
        rows = torch.tensor(batch.indices).argsort()  # the batch is sorted by length
        columns = [[*found, *[0] * (width - len(found))] for found in starmap(alignment, pairs)]
        self.places = rows[:, None], torch.tensor(columns)
        embedded: list[Tensor] = []
        keep = ("hook_embed", lambda embed, hook: embedded.append(embed))
        hooks = model.hooks(fwd_hooks=[keep])
        with torch.no_grad(), hooks, collected(model, "attn.hook_z") as z:
            model(**batch.arguments)
        self.z, self.embeddings = list(map(self.moved, z)), self.moved(embedded[0])
        ends = torch.tensor(
            [(start, len(pair[0]) - end) for pair in pairs for start, end in [common_ends(*pair)]]
        )
        at = torch.arange(width)
        self.in_slot = (ends[:, :1] <= at) & (at < ends[:, 1:])
        """Where the first runs differ from the others."""

    @classmethod
    def of(cls, run: Traced, sequences: Sequences, others: Sequences) -> Counterpart:
        """Those of a batch, from the others of all sequences."""
        pairs = [(sequences[i], others[i]) for i in run.batch.indices]
        return cls(run, pairs, run.batch.arguments["input"].shape[1])

    def gradients(self) -> list[Tensor]:
        """Of the logit difference at ``z`` of every layer."""
        return list(map(self.moved, self.run.gradients()[1]))

    def moved(self, value: Float[Tensor, "batch other ..."]) -> Float[Tensor, "batch pos ..."]:
        """What the other runs have, by the positions of the first."""
        return value[self.places]


def alignment(sequence: Sequence[int], other: Sequence[int]) -> list[int]:
    """For each position of ``sequence`` the one of ``other`` that it is compared with.

    Both begin and end alike; what differs between is one slot, and is compared with the slot's
    last token.

    Raises:
        AttributionError: one of the two has nothing in the slot.
    """
    start, end = common_ends(sequence, other)
    in_slot = len(sequence) - start - end
    if (in_slot == 0) != (len(other) == start + end):
        raise AttributionError(
            f"sequences must differ in the slot alone, got {list(sequence)} and {list(other)}. "
            "Use ablate_to 'zero' or 'mean'."
        )
    last = len(other) - end - 1
    return [*range(start), *[last] * in_slot, *range(len(other) - end, len(other))]


def common_ends(sequence: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """How many tokens two sequences have in common at the beginning, and of the rest at the end."""
    shortest = min(len(sequence), len(other))
    start = 0
    while start < shortest and sequence[start] == other[start]:
        start += 1
    end = 0
    while end < shortest - start and sequence[-1 - end] == other[-1 - end]:
        end += 1
    return start, end
