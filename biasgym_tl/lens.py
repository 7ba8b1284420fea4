"""The seam to TransformerLens: what runs a model, and how it is read. Nothing else asks which
engine it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.edits import Layer
from biasgym_tl.errors import ModelError
from biasgym_tl.precision import long, product

try:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

    if TYPE_CHECKING:
        from transformer_lens import HookedTransformer

        from biasgym_tl.engines import hooked as engine
    else:
        try:
            from biasgym_tl.engines import hooked as engine
        except ImportError:  # TransformerLens 4 has no HookedTransformer
            from biasgym_tl.engines import bridge as engine
        HookedTransformer = engine.Model
except ImportError as error:
    raise ModelError(
        "transformer_lens must be one of 3.9 to 4, with what it needs, but: "
        f"{error}. Run: pip install 'transformer-lens>=3.9,<5'"
    ) from error

__all__ = [
    "ENGINE",
    "HookedTransformer",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
]

ENGINE: str = engine.NAME
"""What models run on: ``"hooked"`` with TransformerLens 3, ``"bridge"`` with 4."""

built, adopted, check_type = engine.built, engine.adopted, engine.check_type
check_kind, check_model = engine.check_kind, engine.check_model
embedding, set_embedding, embedded = engine.embedding, engine.set_embedding, engine.embedded
attention_weight, replaced_weight = engine.attention_weight, engine.replaced_weight
replaced_logit_bias = engine.replaced_logit_bias
named_weights = engine.named_weights
norm_weight, norm_bias, is_centred = engine.norm_weight, engine.norm_bias, engine.is_centred
adds_positions, post_norm = engine.adds_positions, engine.post_norm
device_map = engine.device_map
cache_entry = engine.cache_entry


def layer_matrices(model: HookedTransformer) -> list[Layer]:
    """Those of attention and MLP, by layer, as an edit compares them."""
    found: list[dict[str, Tensor]] = [{} for _ in range(model.cfg.n_layers)]
    for name, weight in named_weights(model):
        room, *at, last = name.split(".")
        if room == "blocks" and last.startswith("W_"):
            found[int(at[0])][f"{at[-1]}.{last}"] = weight
    return [Layer(list(of.values()), of["attn.W_O"]) for of in found]


def weights_dtype(model: HookedTransformer) -> torch.dtype:
    """What weights are kept in; ``cfg.dtype`` is what is computed in."""
    return attention_weight(model, 0, "W_O").dtype


def check_numbers(
    model: HookedTransformer, numbers: Tensor, sequences: Sequence[Sequence[int]]
) -> None:
    """Refuse what came out of activations that overflow.

    Raises:
        ModelError: one of ``numbers`` is NaN; the message names dtype and layer.
    """
    if not bool(numbers.isnan().any()):
        return
    raise ModelError(
        "log-probabilities must be numbers, got NaN: activations overflow in "
        f"{model.cfg.dtype}{_where_it_overflows(model, sequences)}. Load the model with "
        "dtype=torch.float32, or steer less."
    )


@torch.inference_mode()
def _where_it_overflows(model: HookedTransformer, sequences: Sequence[Sequence[int]]) -> str:
    """The first layer after which a number is none, in words."""
    found: list[int] = []

    def look(resid: Tensor, hook: Any) -> None:
        if not found and not bool(resid.isfinite().all()):
            found.append(hook.layer())

    with at_each_layer(model, "hook_resid_post", look):
        for sequence in sequences:
            final_resid(model, [sequence])
            if found:
                return f" at layer {found[0]}"
    return ""


def at_each_layer(
    model: HookedTransformer, name: str, hook: Callable[..., Tensor | None]
) -> AbstractContextManager[Any]:
    """Context in which ``hook`` is called at ``blocks.{layer}.{name}`` of every layer."""
    names = [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers)]
    found: AbstractContextManager[Any] = model.hooks(fwd_hooks=[(at, hook) for at in names])
    return found


def final_resid(
    model: HookedTransformer,
    tokens: Tensor | Sequence[Sequence[int]],
    mask: Tensor | None = None,
    cache: Any = None,
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the last layer, before the final norm.

    Args:
        model: Runs; its first layers do not where :func:`replayed` knows what they make.
        tokens: Sequences; of one length where they are lists.
        mask: 1 at tokens, 0 at padding; default: no padding.
        cache: Key-value cache of what stands before.
    """
    if not isinstance(tokens, Tensor):
        tokens = torch.tensor([list(row) for row in tokens], device=model.cfg.device)
    mask = torch.ones_like(tokens) if mask is None else mask
    replay = _REPLAYS.get(model)
    if replay is not None:
        return replay(tokens, mask, cache)
    found: Tensor = model(
        tokens, attention_mask=mask, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers
    )
    return found


def empty_cache(model: HookedTransformer, batch: int) -> Any:
    """Key-value cache that grows as the model runs."""
    cfg = model.cfg  # TransformerLens's own guesses devices of layers, of which there may be fewer
    one, mask = TransformerLensKeyValueCacheEntry, torch.empty(batch, 0, dtype=torch.int)
    entries = [one.init_cache_entry(cfg, cfg.device, batch) for _ in range(cfg.n_layers)]
    return TransformerLensKeyValueCache(entries, mask.to(cfg.device))


class Recording:
    """What the first layers make of some inputs, kept while only later layers are changed."""

    def __init__(self, layers: Iterable[int]) -> None:
        """Keep the residual stream before each of ``layers`` (0, the tokens, is known)."""
        self.layers = sorted({layer for layer in layers if layer > 0})
        self.steps: list[tuple[Tensor, Tensor, dict[int, Tensor]]] = []
        """Tokens, their mask, and by layer the residual stream, in the order of the runs."""


@contextmanager
def replayed(model: HookedTransformer, recording: Recording, first: int) -> Iterator[None]:
    """Context in which :func:`final_resid` runs only what is new, to the last bit the same.

    What is run in it must be the same tokens in the same order each time the recording is used, on
    a model that differs from layer ``first`` on alone.

    Raises:
        ModelError: other tokens are run.
    """
    if model.cfg.positional_embedding_type == "shortformer":  # enters every layer anew
        yield
        return
    steps = iter(range(len(recording.steps)))

    def run(tokens: Tensor, mask: Tensor, cache: Any) -> Float[Tensor, "batch pos d_model"]:
        if (at := next(steps, None)) is None:
            at = len(recording.steps)
            recording.steps.append((tokens, mask, {}))
        same_tokens, same_mask, known = recording.steps[at]
        if not (torch.equal(tokens, same_tokens) and torch.equal(mask, same_mask)):
            raise ModelError(
                f"inputs must be those that were recorded, got other ones in run {at}. "
                "Replay only what does not depend on what the model answers."
            )
        start = max((layer for layer in known if layer <= first), default=0)
        if start:
            resid = known[start]
            model.embed(tokens)  # for hooks that look at tokens
            mask = mask if cache is None else cache.append_attention_mask(mask)
        else:
            resid, _, _, mask = model.input_to_embed(
                tokens, attention_mask=mask, past_kv_cache=cache
            )
        stops = [layer for layer in recording.layers if start < layer <= first]
        for begin, end in pairwise([start, *stops, model.cfg.n_layers]):
            resid = model(
                resid,
                attention_mask=mask,
                past_kv_cache=cache,
                start_at_layer=begin,
                stop_at_layer=end,
            )
            if end in stops:
                known[end] = resid
        return resid

    _REPLAYS[model] = run
    try:
        yield
    except BaseException:
        recording.steps.clear()  # of some runs alone it would be wrong
        raise
    finally:
        del _REPLAYS[model]


_REPLAYS: WeakKeyDictionary[HookedTransformer, Callable[..., Tensor]] = WeakKeyDictionary()


def final_normed(
    model: HookedTransformer, resid: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_model"]:
    """Final residuals after the final norm, if there is one."""
    if model.cfg.normalization_type is None:
        return resid
    found: Tensor = model.ln_final(resid[None])[0]
    return found.to(resid.device)


def unembed(
    model: HookedTransformer, resid: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_vocab_out"]:
    """Logits of final residuals in at least fp32: final norm, ``W_U``, soft cap if there is one."""
    W_U, b_U = model.unembed.W_U, model.unembed.b_U
    found = product(final_normed(model, resid).to(W_U.device), W_U) + b_U
    logits: Tensor = long(found).to(resid.device)
    cap = model.cfg.output_logits_soft_cap
    if cap and cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return logits


def logit_difference(
    model: HookedTransformer,
    resid: Float[Tensor, "n d_model"],
    biased_ids: Int[Tensor, "n ..."],
    neutral_ids: Int[Tensor, "n ..."],
) -> Float[Tensor, " n"]:
    """``logit b - logit n`` of each final residual, before a final soft cap if there is one; of
    several answers their mean logit."""
    difference, constant = unembed_difference(model, biased_ids, neutral_ids)
    return (final_normed(model, resid) * difference).sum(-1) + constant


def unembed_difference(
    model: HookedTransformer, biased_ids: Int[Tensor, "n ..."], neutral_ids: Int[Tensor, "n ..."]
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """``W_U[:, b] - W_U[:, n]`` and ``b_U[b] - b_U[n]``.

    Ids of shape ``[n, answer]`` are several answers on that side, whose mean counts: logits are
    linear in the residual, and so is their mean, as a log-sum of probabilities would not be.
    """

    def of(weights: Float[Tensor, "... d_vocab"], ids: Int[Tensor, "n ..."]) -> Tensor:
        chosen = long(weights[..., ids.to(weights.device)]).to(model.cfg.device)
        return chosen.mean(-1) if ids.ndim > 1 else chosen

    W_U, b_U = model.unembed.W_U, model.unembed.b_U
    difference = of(W_U, biased_ids) - of(W_U, neutral_ids)
    return difference.T, of(b_U, biased_ids) - of(b_U, neutral_ids)
