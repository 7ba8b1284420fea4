"""TransformerLens 4: a ``TransformerBridge`` that is called and read as a ``HookedTransformer`` is.

The bridge runs Hugging Face's own modules, so its weights are theirs by construction. What differs
from ``HookedTransformer`` and matters here is in this file and in ``running.py``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.utilities.multi_gpu import count_unique_devices
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from biasgym_tl.engines.running import HookedBridge
from biasgym_tl.errors import ModelError, first_line
from biasgym_tl.precision import long, moved_alike
from biasgym_tl.store import BROKEN

NAME, Model = "bridge", HookedBridge


def check_type(config: Any, *, listed: bool) -> None:
    """Refuse a type that TransformerLens has no bridge for.

    Raises:
        ModelError: that is so of a configuration of Hugging Face.
    """
    names = getattr(config, "architectures", None) or ()
    if names and not any(name in SUPPORTED_ARCHITECTURES for name in names):
        raise ModelError(
            f"model must be of a type that TransformerBridge has, got {', '.join(names)}. See "
            "transformer_lens.supported_models."
        )


def built(
    hf_model: Any, name: str, device: str | None, dtype: torch.dtype, *, listed: str, spare: bool
) -> HookedBridge:
    """A bridge around a Hugging Face model; around a copy unless it is ``spare``.

    Without a ``device`` it is over those that Hugging Face has spread it over.

    Raises:
        ModelError: TransformerLens has no bridge for the model's type.
    """
    architecture = type(hf_model).__name__
    source, hf_model = hf_model, hf_model if spare else _copied(hf_model, dtype)
    if device is not None:
        hf_model = hf_model.to(device)
    elif not spare:
        from accelerate import dispatch_model

        skipped = getattr(hf_model, "_skip_keys_device_placement", None)
        hf_model = dispatch_model(hf_model, source.hf_device_map, skip_keys=skipped)
    hf_model.eval().set_attn_implementation("eager")  # what the bridge's hooks need
    try:
        bridge = build_bridge_from_module(
            hf_model, architecture, hf_config=hf_model.config, model_name=name,
            device=hf_model.get_input_embeddings().weight.device,
        )  # fmt: skip
        bridge.cfg.n_devices = count_unique_devices(hf_model)
        found: HookedBridge = adopted(bridge)
        return found
    except ModelError:
        raise
    except BROKEN as error:
        raise ModelError(
            f"TransformerBridge must run a {architecture}, but: {first_line(error)}"
        ) from error


def _copied(hf_model: Any, dtype: torch.dtype) -> Any:
    """The same weights in a model of its own. Cast as it is, it would lose digits of what is not
    read from a checkpoint, such as the frequencies of rotary positions."""
    found = type(hf_model)._from_config(copy.deepcopy(hf_model.config), dtype=dtype)
    found.load_state_dict(hf_model.state_dict())
    return found


def adopted(bridge: Any) -> Any:
    """The bridge itself, with the calls of :class:`HookedBridge`.

    Raises:
        ModelError: it has no layers of its own weights: they are folded, or of another kind.
    """
    if isinstance(bridge, HookedBridge):
        return bridge
    if type(bridge) is not TransformerBridge or getattr(bridge, "_weights_processed", False):
        raise ModelError(
            "model must be a TransformerBridge with its own weights, got a "
            f"{type(bridge).__name__} whose weights are folded or centred. Make it anew, without "
            "enable_compatibility_mode or with no_processing=True."
        )
    blocks = getattr(bridge, "blocks", ())
    usual = all("attn" in block.submodules and "o" in block.attn.submodules for block in blocks)
    if not (blocks and usual and hasattr(bridge, "ln_final")):
        raise ModelError(
            "model must have attention with an output projection in every layer, and a final "
            f"norm, got a {bridge.cfg.architecture}."
        )
    bridge.__class__ = HookedBridge
    bridge.original_model.requires_grad_(False)  # parts of joint projections are new parameters
    cfg, embedding = bridge.cfg, bridge.original_model.get_input_embeddings()
    embedding = getattr(embedding, "original_component", embedding)
    cfg.d_vocab = embedding.weight.shape[0]
    cfg.d_vocab_out = bridge.unembed.W_U.shape[1]
    cfg.original_architecture = cfg.original_architecture or cfg.architecture
    cfg.post_embedding_ln = hasattr(bridge, "embed_ln")
    for norm in (bridge.ln_final, getattr(bridge, "embed_ln", None)):
        if norm is not None:  # it computes beside accelerate, which would have moved its input
            norm.register_forward_pre_hook(_to_weights)
    found: list[Any] = []
    handle = bridge.blocks[0].register_forward_hook(lambda *given: found.append(given[2]))
    with torch.no_grad():
        bridge(torch.zeros(1, 1, dtype=torch.long, device=cfg.device))
    handle.remove()
    bridge.__dict__["layers_return_tuples"] = isinstance(found[0], tuple)
    if hasattr(embedding, "embed_scale"):  # W_E has the scale, as HookedTransformer's
        scaled = long(embedding.weight.detach()) * embedding.scalar_embed_scale
        embedding.weight = nn.Parameter(scaled, requires_grad=False)
        embedding.scalar_embed_scale = 1.0
        embedding.embed_scale.fill_(1)
    return bridge


def _to_weights(norm: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    weight = getattr(norm.original_component, "weight", None)
    return given if weight is None else (given[0].to(weight.device), *given[1:])


def check_kind(model: Any) -> None:
    """Refuse what :func:`adopted` has not seen.

    Raises:
        ModelError: the object is of another kind; the message says what to do with it.
    """
    if not isinstance(model, HookedBridge):
        kind = f"{type(model).__module__.split('.')[0]}.{type(model).__name__}"
        raise ModelError(
            f"model must be what load_model returns, got a {kind}. Pass it to load_model first."
        )


check_model = check_kind


def embedding(model: HookedBridge) -> nn.Parameter:
    """``W_E``, of shape ``[d_vocab, d_model]``."""
    found: nn.Parameter = model.embed.original_component.weight
    return found


def set_embedding(model: HookedBridge, rows: nn.Parameter) -> None:
    """Give the model another ``W_E``."""
    model.embed.original_component.weight = rows


def embedded(model: HookedBridge, vector: Float[Tensor, "1 1 d_model"]) -> Tensor:
    """What enters the residual stream for a row of ``W_E``."""
    found: Tensor = vector
    if model.cfg.post_embedding_ln:
        found = model.embed_ln.original_component(vector)  # without the hooks of a run
    return found


def adds_positions(model: HookedBridge) -> bool:
    """Whether positions are added to the residual stream, at ``hook_pos_embed``."""
    return hasattr(model, "pos_embed")


def device_map(model: HookedBridge) -> dict[str, Any] | None:
    """Which part of Hugging Face's model is on which device; None: all are on one."""
    found: dict[str, Any] | None = getattr(model.original_model, "hf_device_map", None)
    return found if model.cfg.n_devices > 1 else None


def attention_weight(model: HookedBridge, layer: int, name: str) -> Tensor:
    """``W_Q``, ``W_K``, ``W_V``, ``W_O`` by head, or a bias; zeros where there is none."""
    attention = model.blocks[layer].attn
    found: Tensor | None = getattr(attention, name)
    if found is None:
        found = attention.W_O.new_zeros(model.cfg.d_model)
    return found


@contextlib.contextmanager
def replaced_weight(
    model: HookedBridge, layer: int, name: str, weight: Float[Tensor, "head ..."]
) -> Iterator[None]:
    """Another ``W_Q`` or ``W_O`` in a layer; the parameter itself is left alone.

    Raises:
        ModelError: queries have no matrix of their own in this type.
    """
    attention = model.blocks[layer].attn
    linear = getattr(attention, name[-1].lower()).original_component
    if name != "W_O" and not isinstance(linear, nn.Linear):
        raise ModelError(
            f"{name} must be a matrix of its own, and is not in a {model.cfg.architecture} on a "
            "TransformerBridge. Use TransformerLens 3, or another model."
        )
    pattern = "head d_head d_model -> d_model (head d_head)"
    if name == "W_Q":
        pattern = "head d_model d_head -> (head d_head) d_model"
    shaped, old = rearrange(weight, pattern), linear._parameters["weight"]
    linear._parameters["weight"] = shaped if isinstance(linear, nn.Linear) else shaped.T
    try:
        yield
    finally:
        old.data = moved_alike(old.data, weight.dtype, linear._parameters["weight"])
        linear._parameters["weight"] = old


@contextlib.contextmanager
def replaced_logit_bias(model: HookedBridge, bias: Float[Tensor, " d_vocab_out"]) -> Iterator[None]:
    """Another ``b_U``, also where the type has none; the parameter itself is left alone."""
    parameters = model.unembed.original_component._parameters
    old, parameters["bias"] = parameters.get("bias"), bias
    try:
        yield
    finally:
        if old is not None:
            old.data = old.data.to(parameters["bias"].device)  # the model may have been moved
        parameters["bias"] = old


def named_weights(model: HookedBridge) -> Iterator[tuple[str, Float[Tensor, "*of d"]]]:
    """Every weight that is run, by the name and in the shape that ``engines.hooked`` gives it; what
    HookedTransformer does not have, as Hugging Face does."""
    parts, known = dict(_parts(model)), set()
    for path, part in parts.items():
        module = part.original_component
        weight, bias = module.weight, getattr(module, "bias", None)
        known |= {id(weight), id(bias)}
        if path.endswith(".qkv") and path[:-2] in parts:
            continue  # q, k and v are made of it, and are what runs
        at, _, last = path.rpartition(".")
        if isinstance(part, NormalizationBridge):
            names, weight = (f"{path}.w", f"{path}.b"), norm_weight(part)
        elif path in _OUTER:
            names = (f"{path}.W_{_OUTER[path]}", f"{path}.b_{_OUTER[path]}")
            weight = weight[getattr(module, "offset", 0) :]  # OPT's positions begin at 2
        else:
            last = last.upper() if at.endswith("attn") else last
            names = (f"{at}.W_{last}", f"{at}.b_{last}")
            writes = last in ("O", "out")
            weight = weight.T if isinstance(module, Conv1D) != writes else weight
        yield from ((n, w) for n, w in zip(names, (weight, bias), strict=True) if w is not None)
    for name, weight in model.original_model.named_parameters():
        if id(weight) not in known:
            yield name, weight


_OUTER = {"embed": "E", "pos_embed": "pos", "unembed": "U"}


def _parts(model: HookedBridge) -> Iterator[tuple[str, Any]]:
    """Parts of the bridge that have weights; norms by HookedTransformer's names."""
    outer = {**{name: name for name in (*_OUTER, "ln_final")}, "embed.ln": "embed_ln"}
    todo = [(path, getattr(model, name)) for path, name in outer.items() if hasattr(model, name)]
    for layer, block in enumerate(model.blocks):
        parts = {name: getattr(block, name) for name in block.submodules}
        for name in ("ln1", "ln2"):  # its names for those after attention where they are all
            if name not in parts and (norm := parts.pop(f"{name}_post", parts.get("ln1"))):
                parts[name] = norm
        todo += [(f"blocks.{layer}.{name}", part) for name, part in parts.items()]
    while todo:
        path, part = todo.pop()
        inner = getattr(part, "submodules", ())
        todo += [(f"{path}.{name}", getattr(part, name)) for name in inner]
        module = getattr(part, "original_component", None)  # none where parts are only grouped
        if "weight" in getattr(module, "_parameters", ()):
            yield path, part


def norm_weight(norm: Any) -> Float[Tensor, " d_model"] | None:
    """What a norm multiplies with; None: nothing."""
    weight: Tensor | None = getattr(norm.original_component, "weight", None)
    return long(weight) + 1 if weight is not None and norm.uses_weight_offset else weight


def norm_bias(norm: Any) -> Float[Tensor, " d_model"] | None:
    """What a norm adds; None: nothing."""
    found: Tensor | None = getattr(norm.original_component, "bias", None)
    return found


def is_centred(norm: Any) -> bool:
    """Whether a norm subtracts the mean: LayerNorm does, RMSNorm does not."""
    return not norm.uses_rms_norm


def post_norm(model: HookedBridge, layer: int) -> str | None:
    """Name of the norm between a layer's attention and the residual stream, or None."""
    return "ln1_post" if "ln1_post" in model.blocks[layer].submodules else None


def cache_entry(
    model: HookedBridge, layer: int, given: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """What the key-value cache of a run holds for a layer, or None without one."""
    cache = model.__dict__.get("running_cache")
    if cache is not None:
        return cache.entries[layer]
    held = [value for value in (*given, *named.values()) if isinstance(value, Cache)]
    return _Held(held[0], layer) if held else None


class _Held:
    """What Hugging Face's own cache holds for a layer, as an entry of TransformerLens's."""

    frozen = False

    def __init__(self, cache: Cache, layer: int) -> None:
        self.cache, self.layer = cache, layer

    @property
    def past_keys(self) -> Int[Tensor, "1 held"]:
        """Of the length that is held."""
        return torch.zeros(1, self.cache.get_seq_length(self.layer), dtype=torch.long)

    @property
    def read(self) -> Int[Tensor, "batch read"]:
        """The tokens whose keys it holds."""
        found: Tensor = self.cache.tokens_read
        return found

    @read.setter
    def read(self, tokens: Int[Tensor, "batch read"]) -> None:
        self.cache.tokens_read = tokens
