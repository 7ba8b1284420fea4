"""What a user means by a model's name, found out before anything heavy is imported."""

from __future__ import annotations

from functools import cache
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from biasgym_tl.errors import ModelError, did_you_mean, first_line
from biasgym_tl.packaged import PACKAGED, packaged_folder
from biasgym_tl.store import read_json

_TOYS = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Owners of the models that only TransformerLens reads."""
_SIZES = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "n_heads": ("num_attention_heads", "n_head", "num_heads"),
    "d_model": ("hidden_size", "n_embd"),
    "d_vocab": ("vocab_size",),
}
"""What Hugging Face's configurations call them."""


class ModelSizes(NamedTuple):
    """Sizes that heads and rows must fit."""

    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int


@cache
def listed_names() -> dict[str, str]:
    """Lower-case name or alias -> official name, for every model that TransformerLens lists."""
    # Its list is read from its file: to import the package takes ten seconds.
    package = util.find_spec("transformer_lens")
    folder = Path(str(package and package.origin)).parent
    spec = util.spec_from_file_location("_listed_models", folder / "supported_models.py")
    assert spec and spec.loader
    found: Any = util.module_from_spec(spec)
    spec.loader.exec_module(found)
    aliases: dict[str, list[str]] = found.MODEL_ALIASES
    names = found.OFFICIAL_MODEL_NAMES
    return {alias.lower(): name for name in names for alias in (*aliases.get(name, ()), name)}


def find_source(name: str) -> str:
    """Where Hugging Face finds what a user calls by this name: a folder or a name of the hub."""
    if name.lower() in PACKAGED:
        folder = packaged_folder(name.lower())
        return str(folder) if folder else PACKAGED[name.lower()].hub_name
    if is_folder(name):
        return str(Path(name).expanduser())
    return listed_names().get(name.lower(), name)


def is_folder(name: str) -> bool:
    """Whether a name is that of a local folder."""
    return Path(name).expanduser().is_dir()


def model_sizes(name: str) -> ModelSizes | None:
    """Sizes of a model by its configuration; None where that does not say them in known words.

    Raises:
        ModelError: there is no model of that name, or its configuration cannot be read.
    """
    packaged = PACKAGED.get(name.lower())
    if packaged and util.find_spec(packaged.package):  # not converted for this
        return ModelSizes(*packaged.sizes)
    config = read_json(_config_file(name))
    if not isinstance(config, dict):
        raise ModelError(f"config.json of {name!r} must be an object, got {config!r:.80}.")
    found = (next((config[key] for key in keys if key in config), None) for keys in _SIZES.values())
    sizes = [size for size in found if isinstance(size, int)]
    return ModelSizes(*sizes) if len(sizes) == len(_SIZES) else None


def _config_file(name: str) -> Path:
    source = find_source(name)
    if is_folder(source):
        path = Path(source) / "config.json"
        check_folder(Path(source))
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, "config.json"))
    except (OSError, ValueError) as error:  # the second of what can be no name of the hub
        raise ModelError(not_found(name, source, error)) from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no whole model.

    Raises:
        ModelError: it holds an adapter or other files.
    """
    names = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in names:
        raise ModelError(
            f"folder must hold a whole model, got a PEFT adapter in {str(folder)!r}. Merge it: "
            "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
            ".save_pretrained(merged)."
        )
    if "config.json" not in names:
        raise ModelError(
            f"folder must hold config.json and weights, as save_pretrained writes them, got "
            f"{names[:8]} in {str(folder)!r}."
        )


def not_found(name: str, source: str, error: Exception) -> str:
    """What to say of a model that Hugging Face does not find."""
    if is_folder(source):
        return f"{source!r} must hold a whole model, but: {first_line(error)}"
    if source.startswith(_TOYS):
        return (
            f"model must be one that Hugging Face can read, got {name!r}, a model of its own of "
            "TransformerLens. Load it with HookedTransformer.from_pretrained_no_processing and "
            "pass that to the package's calls."
        )
    known = [*PACKAGED, *listed_names()]
    hint = "" if name.lower() in known else did_you_mean(name, known)
    return (
        f"model must be one of {sorted(PACKAGED)}, a local folder, a TransformerLens name or a "
        f"Hugging Face name, got {name!r}.{hint} ({first_line(error)})"
    )
