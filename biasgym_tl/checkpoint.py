"""Reading a model and its tokenizer as Hugging Face has them: nothing is run, nothing guessed.

No code of a folder is run and no pickle is read; weights that Hugging Face would fill in, leave out
or hold elsewhere than in memory are refused with the remedy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeAlias

import torch

from biasgym_tl.allowed import DEVICE_MAPS
from biasgym_tl.errors import ModelError, SettingError, first_line
from biasgym_tl.families.convert import FAMILIES
from biasgym_tl.lens import ENGINE, HookedTransformer, check_type
from biasgym_tl.origin import check_folder, find_source, is_folder, listed_names, not_found
from biasgym_tl.store import BROKEN, read_json

DeviceMap: TypeAlias = str | dict[str, Any] | None
"""Which part of a model is on which device: ``"auto"``, ``"balanced"``, or Hugging Face's map."""
_SHARD = re.compile(r"[^/\\]+\.safetensors")
WHOLE = "model.safetensors"
"""The file of weights that are in one."""
BUFFERS = (".inv_freq", ".attn.bias", ".attention.bias", ".masked_bias", ".position_ids")
"""Ends of names that older checkpoints give to what is computed and not learned."""


def load_hugging_face(
    name: str, tokenizer: Any, dtype: torch.dtype, device_map: DeviceMap = None
) -> tuple[Any, Any]:
    """Model and tokenizer of a packaged name, a local folder or a hub name, as Hugging Face's.

    The type is checked before any weights are read, each to its device where there is a map; on
    ``"meta"`` only their names and shapes are read, and so not checked whether they are numbers.

    Raises:
        ModelError: as :func:`biasgym_tl.load_model`.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    source = find_source(name)
    if is_folder(source):
        _check_folder(Path(source))
    safe: dict[str, Any] = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **safe)
        listed = source in listed_names().values()
        _check_config(config, source, listed=listed)
        config._attn_implementation = "eager"  # whatever kernel of the hub the file names
        tokenizer = as_tokenizer(source if tokenizer is None else tokenizer)
        hf_model, found = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, attn_implementation="eager",
            output_loading_info=True, device_map=device_map, **safe,
        )  # fmt: skip
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(not_found(name, source, error)) from error
    except (*BROKEN, LookupError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise ModelError(
            f"{source!r} must hold a model that can be read without running its code, but: "
            f"{first_line(error)}"
        ) from error
    _check_keys(source, found)
    return checked(hf_model, listed=listed, in_memory=device_map != "meta"), tokenizer


def weight_files(name: str) -> list[Path]:
    """The files that :func:`load_hugging_face` reads the weights from.

    Raises:
        ModelError: there are none.
    """
    from transformers.utils import cached_file

    source = find_source(name)
    try:
        if found := cached_file(source, WHOLE, _raise_exceptions_for_missing_entries=False):
            return [Path(found)]
        index = read_json(Path(cached_file(source, f"{WHOLE}.index.json")))
        return [Path(cached_file(source, n)) for n in sorted(set(index["weight_map"].values()))]
    except OSError as error:
        raise ModelError(not_found(name, source, error)) from error


def as_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, or that of a folder or name.

    Raises:
        ModelError: there is none, or it is of another kind.
    """
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
        found = AutoTokenizer.from_pretrained(find_source(str(tokenizer)), trust_remote_code=False)
        if len(found.get_vocab()) <= len(found.added_tokens_decoder):
            raise ValueError("it has no words.")  # transformers makes an empty one without files
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"{str(tokenizer)!r} must hold a tokenizer beside the weights that can be read without "
            f"running its code, but: {first_line(error)} Pass tokenizer=... to load_model."
        ) from error


def checked(given: Any, *, listed: bool = False, in_memory: bool = True) -> Any:
    """A loaded Hugging Face model whose weights can be read as they are; or could be, where they
    need not be ``in_memory``.

    Raises:
        ModelError: it is something else, has no output head, carries an adapter, is quantized, or
            its weights are not in memory.
    """
    model: Any = getattr(given, "_orig_mod", given)  # what torch.compile wraps
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    if hasattr(model, "peft_config") or any(
        hasattr(module, "lora_A") or hasattr(module, "base_layer") for module in modules
    ):
        raise ModelError(
            "model must be merged with its PEFT adapter, got one that is not. Run: "
            "model = model.merge_and_unload() (after model.add_adapter: load it as a PeftModel)."
        )
    if isinstance(given, HookedTransformer) or not isinstance(given, torch.nn.Module):
        raise ModelError(
            "model must be a name, a folder or a Hugging Face model, got a "
            f"{type(given).__name__}. A HookedTransformer needs no loading: use it as it is."
        )
    config: Any = getattr(model, "config", None)
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
    if in_memory:
        _check_parameters(model)
    return model


def chosen_device(model: Any, device: str | None, device_map: DeviceMap) -> str | None:
    """Where a name or a loaded model is to be; None: over several devices.

    Raises:
        SettingError: the map is none, or stands beside a device or a loaded model; or the engine is
            HookedTransformer.
    """
    if device_map is not None:
        _check_device_map(device_map, device, model)
        return None
    # A model of Hugging Face knows where it has been put.
    several = len({*getattr(model, "hf_device_map", {}).values()}) > 1
    if device is None and not (several and ENGINE == "bridge"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _check_device_map(device_map: Any, device: str | None, model: Any) -> None:
    if not (isinstance(device_map, dict) or device_map in DEVICE_MAPS):
        raise SettingError(
            f"device_map must be one of {list(DEVICE_MAPS)}, or a device for each part of the "
            f"model, got {device_map!r}."
        )
    if ENGINE != "bridge":
        raise SettingError(
            "device_map must be None with a HookedTransformer, which is on one device, got "
            f"{device_map!r}. Run: pip install 'transformer-lens>=4.3,<5'"
        )
    if device is not None or not isinstance(model, (str, Path)):
        raise SettingError(
            f"device_map must be given without device, for a name or a folder, got {device_map!r}. "
            "A loaded model stays on the devices that from_pretrained(device_map=...) gave it."
        )


def _check_folder(folder: Path) -> None:
    """Refuse, before anything is read, folders that hold no model or one that cannot be used."""
    names = sorted(path.name for path in folder.iterdir())
    for index in folder.glob("*.index.json"):
        _check_index(index)
    check_folder(folder)
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        raise ModelError(
            f"weights in {str(folder)!r} must be .safetensors, got {names[:8]}. Pickled weights "
            "can run code and are not read: load them where you trust them and write them with "
            "save_pretrained(folder)."
        )


def _check_index(path: Path) -> None:
    """Refuse a list of shards that names pickle or files elsewhere."""
    listed = read_json(path)
    shards = listed.get("weight_map") if isinstance(listed, dict) else None
    named = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    wrong = sorted(name for name in named if not _SHARD.fullmatch(name))
    if wrong or not named:
        raise ModelError(
            f"{str(path)!r} must list files beside it that end in .safetensors, got "
            f"{wrong[:3] or 'none'}."
        )


def _check_keys(source: str, found: dict[str, Any]) -> None:
    """Refuse weights that Hugging Face filled in or left out."""
    missing = sorted(found["missing_keys"])
    mismatched = sorted(
        str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"]
    )
    unexpected = sorted(key for key in found["unexpected_keys"] if not key.endswith(BUFFERS))
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
            "Load it on devices that hold it whole, or with dtype=torch.bfloat16, or pass its name "
            "or folder."
        )
    _check_places(model)
    dtypes = {p.dtype for p in parameters}
    if len(dtypes) > 1 or any(torch.finfo(dtype).bits < 16 for dtype in dtypes):
        raise ModelError(
            f"weights must be of one dtype, 16 to 64 bits, got {sorted(map(str, dtypes))}. Run: "
            "model.to(torch.float32)."
        )
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise ModelError("weights must be numbers, got NaN or inf. Is the checkpoint whole?")


def _check_places(model: Any) -> None:
    """Refuse a weight that is not on the device that accelerate runs its module on."""
    for name, module in model.named_modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        weights = [w for w in module._parameters.values() if w is not None]
        if device is not None and any(w.device != torch.device(device) for w in weights):
            raise ModelError(
                f"device_map must have tied weights on one device, got {name} on {device} with "
                f"weights of {weights[0].device}. Put both there, or use device_map='auto'."
            )


def _check_config(config: Any, what: str, *, listed: bool) -> None:
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"weights must be floating-point numbers, got quantized ones in {what!r}. Load the "
            "original checkpoint."
        )
    check_type(config, listed=listed)
