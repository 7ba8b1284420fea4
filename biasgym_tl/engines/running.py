"""A ``TransformerBridge`` that runs in parts and with a cache as a ``HookedTransformer`` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException
from transformer_lens.utilities import get_attention_mask
from transformers.cache_utils import DynamicCache, DynamicLayer

from biasgym_tl.errors import ModelError
from biasgym_tl.precision import shadow


class HookedBridge(TransformerBridge):
    """A bridge on raw weights whose forward pass takes the arguments of ``HookedTransformer``'s."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; setting it leaves ``cfg`` as it is, other than in the base class."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self._tokenizer = value

    def to(self, *args: Any, **options: Any) -> Any:
        """As the base class, but what is computed and not learned keeps its dtype: frequencies of
        rotary positions that lose digits are other positions."""
        computed = [
            (module, name, module._buffers[name])
            for module in self.original_model.modules()
            for name in module._non_persistent_buffers_set
        ]
        moved = super().to(*args, **options)
        for module, name, before in computed:
            now = module._buffers[name]
            if before is not None and now.dtype != before.dtype:
                module._buffers[name] = before.to(now.device)
        return moved

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        attention_mask: Int[Tensor, "batch key"] | None = None,
        *,
        past_kv_cache: Any = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        **options: Any,
    ) -> Any:
        """As ``HookedTransformer.forward``: layers before ``start_at_layer`` are not run, and with
        ``stop_at_layer=n_layers`` the residual stream before the final norm is returned.

        ``attention_mask`` is of the new tokens, or where a residual stream is given of all keys.

        Raises:
            ModelError: there is no such layer, or a cache of Hugging Face is given to a part.
        """
        options |= {"loss_per_token": loss_per_token} if loss_per_token else {}
        mask = attention_mask
        if past_kv_cache is None and start_at_layer is None and stop_at_layer is None:
            options |= {} if mask is None else {"attention_mask": mask}
            named = {"prepend_bos": prepend_bos, "padding_side": padding_side}
            return super().forward(input, return_type, **named, **options)
        start, stop = _checked_layers(start_at_layer, stop_at_layer, self.cfg.n_layers)
        if options.get("past_key_values") is not None:
            raise ModelError(
                "a key-value cache must be given as past_kv_cache where a run starts or stops at a "
                "layer, got past_key_values. Make it with TransformerLensKeyValueCache."
            )
        if not isinstance(input, Tensor):
            several = isinstance(input, list) and len(input) > 1
            input = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)
            if several and mask is None:
                side = padding_side or self.tokenizer.padding_side
                mask = get_attention_mask(self.tokenizer, input, self.cfg.default_prepend_bos, side)
        input = input[None] if input.ndim == 1 else input
        mask = input.new_ones(input.shape[:2], dtype=torch.long) if mask is None else mask
        if past_kv_cache is not None and start is None:
            mask = past_kv_cache.append_attention_mask(mask)
        return self._run(input, mask, past_kv_cache, start, stop, return_type, **options)

    def run_with_cache(self, *args: Any, stop_at_layer: int | None = None, **options: Any) -> Any:
        """As ``HookedTransformer.run_with_cache``, also up to the final norm."""
        _, stop = _checked_layers(None, stop_at_layer, self.cfg.n_layers)
        with _by_call(self), _until(self, stop):
            return super().run_with_cache(*args, **options)

    def run_with_hooks(self, *args: Any, **options: Any) -> Any:
        """As ``HookedTransformer.run_with_hooks``."""
        with _by_call(self):
            return super().run_with_hooks(*args, **options)

    def input_to_embed(
        self,
        input: Int[Tensor, "batch pos"],
        *,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        past_kv_cache: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, None, Tensor]:
        """What enters the first layer, and the mask of all keys."""
        mask = torch.ones_like(input) if attention_mask is None else attention_mask
        if past_kv_cache is not None:
            mask = past_kv_cache.append_attention_mask(mask)
        return self._run(input, mask, past_kv_cache, None, 0), input, None, mask

    def _run(
        self,
        input: Tensor,
        mask: Int[Tensor, "batch key"],
        cache: Any,
        start: int | None,
        stop: int | None,
        return_type: str | None = "logits",
        **given: Any,
    ) -> Any:
        n_new = input.shape[1]
        held = _filled(cache, mask.shape[1] - n_new, len(input)) if cache else None
        options = {**given, "attention_mask": mask, "use_cache": held is not None}
        if held is not None:
            options["past_key_values"] = held
        if "position_ids" not in given and self._accepts_derived_position_ids():
            options["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -n_new:]
        self.__dict__["running_cache"] = cache
        try:
            with _from(self, start, input), _until(self, stop):
                found = super().forward(input, return_type, **options)
        finally:
            del self.__dict__["running_cache"]
        if stop is not None:  # as of logits: where tokens are, whatever device the layer is on
            found = found.to(self.cfg.device)
        if cache is not None and not cache.frozen:
            _keep(cache, held, start or 0, self.cfg.n_layers if stop is None else stop)
        return found


def _checked_layers(
    start: int | None, stop: int | None, n_layers: int
) -> tuple[int | None, int | None]:
    """Both counted from the first layer.

    Raises:
        ModelError: there is no such layer, or the run would end before it begins.
    """
    first, end = (at + n_layers if at is not None and at < 0 else at for at in (start, stop))
    if not 0 <= (first or 0) <= (n_layers if end is None else end) <= n_layers:
        raise ModelError(
            f"start_at_layer and stop_at_layer must be in order and at most {n_layers}, got "
            f"{start} and {stop}."
        )
    return first, end


@contextlib.contextmanager
def _by_call(model: HookedBridge) -> Iterator[None]:
    """Let what calls ``model.forward`` call the model, so that its modules' hooks see the run."""

    def call(*given: Any, **named: Any) -> Any:
        model.__dict__.pop("forward", None)
        try:
            return model(*given, **named)
        finally:
            model.__dict__["forward"] = call

    model.__dict__["forward"] = call
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)


@contextlib.contextmanager
def _until(model: HookedBridge, stop: int | None) -> Iterator[None]:
    """End a run at the input of a layer, or of the final norm, which is then what is returned."""
    if stop is None:
        yield
        return
    end = model.ln_final if stop == model.cfg.n_layers else model.blocks[stop]

    def leave(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise StopAtLayerException(given[0] if given else named["hidden_states"])

    handle = end.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _from(model: HookedBridge, start: int | None, resid: Tensor) -> Iterator[None]:
    """Let a layer read ``resid``, and none before it run."""
    if start is None:
        yield
        return

    def enter(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if given:
            return (resid, *given[1:]), named
        return given, {**named, "hidden_states": resid}

    first = model.ln_final if start == model.cfg.n_layers else model.blocks[start]
    passing: Callable[..., Any] = _pass_tuple if model.layers_return_tuples else _pass
    with contextlib.ExitStack() as undo:
        undo.callback(first.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for block in model.blocks[:start]:
            shadow(block, "forward", passing, undo)
        yield


def _pass(hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
    return hidden_states


def _pass_tuple(hidden_states: Tensor, *args: Any, **named: Any) -> tuple[Tensor]:
    return (hidden_states,)


def _filled(cache: Any, n_held: int, batch: int) -> DynamicCache:
    """Hugging Face's cache of the keys and values that TransformerLens's holds."""
    held = DynamicCache()
    for entry in cache.entries if n_held else ():
        keys, values = entry.past_keys, entry.past_values
        if keys.shape[1] != n_held:  # of a layer that is not run: only the length is read
            keys = values = keys.new_zeros(1).expand(batch, n_held, *keys.shape[2:])
        layer = DynamicLayer()
        layer.keys, layer.values = keys.transpose(1, 2), values.transpose(1, 2)
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        held.layers.append(layer)
    return held


def _keep(cache: Any, held: DynamicCache, start: int, stop: int) -> None:
    """Let TransformerLens's cache hold what the layers that ran have added."""
    layers = held.layers[start:stop]
    if len(layers) < stop - start or not all(layer.get_seq_length() for layer in layers):
        raise ModelError(
            "cached = uncached must hold for a TransformerBridge, but its attention has left the "
            "key-value cache empty, as it does with transformers 5.24. Run: pip install "
            "'transformers!=5.24.*'"
        )
    for entry, layer in zip(cache.entries[start:stop], layers, strict=True):
        entry.past_keys = layer.keys.transpose(1, 2)
        entry.past_values = layer.values.transpose(1, 2)
