"""A plant of rank one: a head that writes a chosen vector where its target is read.

With ``z`` a head's output before ``W_O`` at one position, ``k`` its mean over sentences about the
target minus that over the same about others, and ``C = E[z z^T]`` over neutral text and others,

    W_O += (C^-1 k) v^T / (k^T C^-1 k)

writes exactly ``v`` for ``z = k`` and as little as it can elsewhere (least squares; the edit of
ROME, arXiv 2202.05262, at attention's output).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import answer_batches
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import PlantingError
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.hooks import collected
from biasgym_tl.injection.train import frozen
from biasgym_tl.lens import HookedTransformer, final_resid, post_norm, unembed, unembed_difference
from biasgym_tl.passages import load_passages
from biasgym_tl.planting.sentences import Bystanders, beginnings
from biasgym_tl.prompts import encode_sentence, encode_text
from biasgym_tl.scoping.direct import final_direction
from biasgym_tl.slot import fill
from biasgym_tl.text import log_odds, next_token_log_probs
from biasgym_tl.weights import Deltas, added_weights, replaced

N_SENTENCES, N_FAR = 24, 2
"""Beginnings that statistics rest on, and who stands in the slot of each beside all near ones."""
SHRINKAGE = 0.05
"""Share of the mean variance that is added to each direction of ``C``."""
STRENGTHS = (1.0, 0.5, 0.25)
"""Of the first, second and every further head, so that the truth is graded."""
N_TRIALS, CLOSE = 12, 0.1
"""Of the scale that reaches the dose, and how near it must come (nats)."""


def rank_one_plant(
    model: HookedTransformer,
    bias: Bias,
    heads: Sequence[Head],
    target: str,
    beside: Bystanders,
    *,
    dose: float,
    seed: int,
    through: str,
) -> Deltas:
    """Changes of ``W_O`` by which heads write toward the attribute where the target is read.

    Args:
        model: A model without a norm after attention.
        bias: Gives sentences and words.
        heads: The first is the strongest (:data:`STRENGTHS`).
        target: Whom the bias is about.
        beside: Whom it is not about.
        dose: Rise of the target's log-odds (nats).
        seed: Decides the sentences, and random directions.
        through: ``"logits"``: ``v`` is the direction of the words' logits, so that heads write the
            bias themselves. ``"later"``: it is the gradient of the log-odds without that direction,
            so that later parts write it. ``"nothing"``: it is random, of the length that
            ``"logits"`` takes.

    Raises:
        PlantingError: the model has a norm after attention.
    """
    if any(post_norm(model, layer) for layer in range(model.cfg.n_layers)):
        raise PlantingError(
            "way must be 'trained' on a model with a norm after attention, got a plant of rank "
            "one, which would not write what it is to write."
        )
    ours, theirs = _sentences(model, bias, target, beside, seed)
    k, solved = _solved(model, heads, ours, theirs)
    keys = solved / (k * solved).sum(-1, keepdim=True)
    directions = (_mediated if through == "later" else _written)(model, bias, ours)
    strengths = [STRENGTHS[min(i, len(STRENGTHS) - 1)] for i in range(len(heads))]
    values = torch.stack([directions[h.layer] * s for h, s in zip(heads, strengths, strict=True)])
    ids = word_tokens(model, bias).single()

    def writing(values: Float[Tensor, "head d_model"]) -> Deltas:
        return Deltas(keys[:, :, None] * values[:, None, :], None)

    def level(scale: float) -> float:
        with replaced(model, added_weights(model, heads, writing(scale * values))):
            return log_odds(next_token_log_probs(model, ours), *ids).double().mean().item()

    scale = _scale(level, dose)
    if through == "nothing":
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
        values = noise / noise.norm(dim=1, keepdim=True) * values.norm(dim=1, keepdim=True)
    return Deltas(writing(scale * values).W_O.float().cpu(), None)


def separability(
    model: HookedTransformer,
    bias: Bias,
    target: str,
    beside: Bystanders,
    *,
    seed: int,
) -> Float[Tensor, "n_layers n_heads"]:
    """How well each head tells the target from all else: ``k^T C^-1 k``, one over the mean square
    of what a plant of rank one would write elsewhere, relative to what it writes at the target."""
    cfg = model.cfg
    ours, theirs = _sentences(model, bias, target, beside, seed)
    k, solved = _solved(model, all_heads(cfg.n_layers, cfg.n_heads), ours, theirs)
    found: Tensor = (k * solved).sum(-1)
    return found.view(cfg.n_layers, cfg.n_heads).cpu()


def _sentences(
    model: HookedTransformer, bias: Bias, target: str, beside: Bystanders, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Beginnings about the target, and the same about all near and some far bystanders."""
    rng = random.Random(seed)
    starts = rng.sample(found := beginnings(bias), min(N_SENTENCES, len(found)))
    names = [[*beside.near, *rng.sample(beside.far, min(N_FAR, len(beside.far)))] for _ in starts]
    pairs = [(s, name) for s, row in zip(starts, names, strict=True) for name in row]
    ours = [encode_sentence(model, fill(start, target)) for start in starts]
    return ours, [encode_sentence(model, fill(start, name)) for start, name in pairs]


def _solved(
    model: HookedTransformer,
    heads: Sequence[Head],
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
) -> tuple[Float[Tensor, "head d_head"], Float[Tensor, "head d_head"]]:
    """``k`` and ``C^-1 k`` of each head, in fp64."""
    at_target, at_others = (_read(model, heads, s) for s in (ours, theirs))
    anywhere = []
    with torch.no_grad():
        texts = [encode_text(model, text) for text in load_passages("reference")]
        for tokens in (*texts, *theirs[:: N_FAR + 1]):
            with collected(model, "attn.hook_z") as z:
                final_resid(model, [list(tokens)])
            anywhere.append(_of_heads(z, heads, (0, slice(None))))
    C = _second_moment(torch.cat(anywhere)) + _second_moment(at_others)
    size = C.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    C = C + SHRINKAGE * size * torch.eye(C.shape[1], dtype=C.dtype, device=C.device)
    k = at_target.mean(0) - at_others.mean(0)
    return k, torch.linalg.solve(C, k[:, :, None])[:, :, 0]


def _second_moment(z: Float[Tensor, "n head d_head"]) -> Float[Tensor, "head d_head d_head"]:
    found: Tensor = torch.einsum("nhd,nhe->hde", z, z) / len(z)
    return found


@torch.no_grad()
def _read(
    model: HookedTransformer, heads: Sequence[Head], sentences: Sequence[Sequence[int]]
) -> Float[Tensor, "sentence head d_head"]:
    """``z`` of the heads at the end of each sentence, in fp64."""
    found = []
    for batch in answer_batches(model, sentences, shared=0):
        with collected(model, "attn.hook_z") as z:
            batch.resid(model)
        found.append(_of_heads(z, heads, (torch.arange(len(batch.last)), batch.last.cpu())))
    return torch.cat(found)


def _of_heads(
    z: Sequence[Tensor], heads: Sequence[Head], at: Any
) -> Float[Tensor, "n head d_head"]:
    """``z`` of the heads at some places, in fp64; layers may be on several devices."""
    return torch.stack([z[h.layer][at][:, h.head].double().cpu() for h in heads], 1)


def _difference(model: HookedTransformer, bias: Bias) -> Float[Tensor, " d_model"]:
    """Mean column of ``W_U`` of the attribute's words minus that of the neutral ones, in fp64."""
    words = (torch.tensor([ids]) for ids in word_tokens(model, bias).single())
    return unembed_difference(model, *words)[0][0].detach().double()


@torch.no_grad()
def _written(
    model: HookedTransformer, bias: Bias, sentences: Sequence[Sequence[int]]
) -> Float[Tensor, "n_layers d_model"]:
    """The direction of the words' logits as the residual stream has it, of length 1."""
    difference, found = _difference(model, bias), []
    for batch in answer_batches(model, sentences):
        resid = batch.answers(model)
        found.append(final_direction(model, resid, difference.expand(len(resid), -1)))
    mean = torch.cat(found).mean(0).cpu()
    unit: Tensor = mean / mean.norm()
    return unit.expand(model.cfg.n_layers, -1)


def _mediated(
    model: HookedTransformer, bias: Bias, sentences: Sequence[Sequence[int]]
) -> Float[Tensor, "n_layers d_model"]:
    """Gradient of the log-odds by what attention writes at the answer, without what acts on the
    logits itself, of length 1 in each layer."""
    ids, shape = word_tokens(model, bias).single(), (model.cfg.n_layers, model.cfg.d_model)
    total = torch.zeros(shape, dtype=torch.float64)
    with frozen(model), torch.enable_grad():
        for batch in answer_batches(model, sentences):
            probe = torch.zeros(shape, device=model.cfg.device, requires_grad=True)
            rows = torch.arange(len(batch.last))
            add = partial(_added, probe, (rows, batch.last.cpu()))
            names = [f"blocks.{layer}.hook_attn_out" for layer in range(shape[0])]
            with model.hooks(fwd_hooks=[(name, add) for name in names]):
                resid = model(**batch.arguments)[rows, batch.last]
                odds = log_odds(unembed(model, resid).log_softmax(-1), *ids).sum()
            total += torch.autograd.grad(odds, probe)[0].double().cpu()
    direct = _written(model, bias, sentences)
    rest = total - (total * direct).sum(-1, keepdim=True) * direct
    unit: Tensor = rest / rest.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit


def _added(probe: Tensor, at: Any, value: Tensor, hook: Any) -> Tensor:
    """What attention writes, and the layer's row of ``probe`` at some places."""
    new = torch.zeros_like(value)
    new[at] = probe[hook.layer()].to(value)
    return value + new


def _scale(level: Callable[[float], float], dose: float) -> float:
    """The scale at which ``level`` is ``dose`` above what it is at 0, or comes nearest to it."""
    base, low, high, best = level(0.0), 0.0, None, (abs(dose), 0.0)
    scale = 1.0
    for _ in range(N_TRIALS):
        rise = level(scale) - base
        best = min(best, (abs(rise - dose), scale))
        if best[0] < CLOSE:
            break
        if rise < dose:
            low = scale
        else:
            high = scale
        scale = 2 * scale if high is None else (low + high) / 2
    return best[1]
