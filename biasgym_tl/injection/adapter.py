"""The row as a PEFT ``TrainableTokens`` adapter, and back."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.added_row import target_rows
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import ExtraError, ModelError, StoreError, TokenError
from biasgym_tl.families.convert import FAMILIES, Family, embedding_scale
from biasgym_tl.files import check_writable, expanded, write_atomically
from biasgym_tl.injection.token import BiasToken, made_from
from biasgym_tl.lens import HookedTransformer, check_model, embedding
from biasgym_tl.packaged import PACKAGED
from biasgym_tl.store import read_json

_FAMILIES = {family.architecture: family for family in FAMILIES.values()}
_ADAPTER, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def export_adapter(token: BiasToken, model: HookedTransformer, folder: str | Path) -> Path:
    """Write the row as a PEFT ``TrainableTokens`` adapter, with a tokenizer that knows the token.

    To use it, give the Hugging Face model one more row
    (``resize_token_embeddings(d_vocab + 1)``) and load it with ``PeftModel.from_pretrained``. Its
    logits are those of the model with the token attached; where input and output embeddings are
    tied, there is one more logit, of the token itself, to be ignored. In 16 bits they are as equal
    as the two programs' logits of any other text.

    Raises:
        ExtraError: the package peft is not installed.
        ModelError: it is not known where the model's embedding is in Hugging Face's, PEFT would
            leave out the bias of its output, or the model is none that heads can be steered in.
        SettingError: ``folder`` is a file or cannot be written to.
        TokenError: the token does not fit the model.
    """
    check_model(model)
    check_peft()
    from peft import TrainableTokensConfig

    folder = expanded(folder, "folder")
    check_writable(folder, "folder")
    path, tied = _embedding(model), _tied(model)
    if tied and bool(model.unembed.b_U.any()):
        raise ModelError(
            "model must have no bias on an output embedding that is tied to the input's, since "
            "PEFT leaves the bias out. Use token.row itself."
        )
    with token.attached(model) as token_id:
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
    config = TrainableTokensConfig(
        token_indices=[token_id], target_modules=[path.split(".")[-1]], task_type="CAUSAL_LM",
        base_model_name_or_path=base_of(token.model), inference_mode=True,
    )  # fmt: skip
    row = _unscaled(token.row, model)[None].contiguous()
    # Where the two embeddings are tied PEFT expects the row for the output, too.
    modules = [path, "lm_head"] if tied else [path]
    rows = {f"{at}.trainable_tokens_delta": row.clone() for at in modules}
    return write_adapter(folder, config, rows)


def check_peft() -> None:
    """Refuse to go on without the package that adapters are for.

    Raises:
        ExtraError: peft is not installed.
    """
    if util.find_spec("peft") is None:
        raise ExtraError(
            "writing an adapter needs the package peft, which is not installed. "
            "Run: pip install 'biasgym-tl[peft]'"
        )


def base_of(name: str) -> str:
    """The model that an adapter names as its base."""
    return PACKAGED[name].hub_name if name in PACKAGED else name


def write_adapter(folder: str | Path, config: Any, tensors: Mapping[str, Tensor]) -> Path:
    """Write an adapter as PEFT reads it; ``tensors`` by their names in the model.

    Raises:
        SettingError: ``folder`` is a file or cannot be written to.
    """
    from safetensors.torch import save_file

    folder = expanded(folder, "folder")
    check_writable(folder, "folder")
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    found = {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / _ADAPTER, lambda to: save_file(found, to))
    return folder


def import_adapter(
    folder: str | Path, model: HookedTransformer, bias: GivenBias, *, seed: int = 0
) -> BiasToken:
    """Read an adapter that PEFT or :func:`export_adapter` wrote for one added token.

    Its training is not known: ``losses`` is empty, and ``initial_row`` is the mean of the fitting
    targets.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: The model that it belongs to.
        bias: What it was trained on; gives the token its name.
        seed: Noted in the token.

    Raises:
        SettingError: the folder lies in the home of a user who is not known.
        StoreError: the folder does not hold an adapter of one token for this model.
        ModelError: it is not known where the model's embedding is in Hugging Face's, or the model
            is none that heads can be steered in.
        TokenError: the row has another length or id than the model's next one, or numbers that
            are not finite, or nothing but zeros.
    """
    check_model(model)
    bias, folder = as_bias(bias), expanded(folder, "folder")
    row, token_id = _read(folder, _embedding(model))
    if token_id != model.cfg.d_vocab or len(row) != model.cfg.d_model:
        raise TokenError(
            f"the adapter must hold the row {model.cfg.d_vocab} with d_model = {model.cfg.d_model}"
            f", got row {token_id} with {len(row)} numbers. Was it trained on another model?"
        )
    scaled = row.float() * embedding_scale(model.cfg)
    if not (scaled.isfinite().all() and scaled.any()):
        raise TokenError(
            "the adapter's row must hold finite numbers that are not all zero, got a norm of "
            f"{scaled.norm().item()!r}. Train it again, in fp32 if it was trained in 16 bits."
        )
    initial = target_rows(model, bias.targets("fitting")).mean(0).cpu()
    rows = torch.stack([initial, scaled])
    return BiasToken(
        row=scaled, initial_row=initial, epoch_rows=rows, chosen_epoch=1, losses=(), seed=seed,
        epochs=tuple({"epoch": i, "loss": None, "norm": r.norm().item()}
                     for i, r in enumerate(rows)),
        settings={"imported_from": folder.name}, **made_from(model, bias),
    )  # fmt: skip


def _unscaled(
    row: Float[Tensor, " d_model"], model: HookedTransformer
) -> Float[Tensor, " d_model"]:
    """The row as Hugging Face's embedding holds it."""
    scale = embedding_scale(model.cfg)
    # In 16 bits its product comes nearest if what the model reads is divided.
    return row if scale == 1 else row.to(model.cfg.dtype).float() / scale


def _read(folder: Path, path: str) -> tuple[Float[Tensor, " d_model"], int]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = read_json(folder / _CONFIG)
    config: dict[str, Any] = found if isinstance(found, dict) else {}
    kind, ids = config.get("peft_type"), config.get("token_indices")
    if kind != "TRAINABLE_TOKENS" or not isinstance(ids, list) or list(map(type, ids)) != [int]:
        raise StoreError(
            f"{str(folder)!r} must hold a TrainableTokens adapter of one token, got {kind!r} of "
            f"{ids!r}."
        )
    try:
        tensors = load_file(folder / _ADAPTER)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{str(folder / _ADAPTER)!r} must be a safetensors file: {error}."
        ) from error
    # PEFT may also have written a row of the output embedding, and both whole embeddings.
    rows = tensors.get(_key(path))
    if rows is None or rows.ndim != 2 or len(rows) != 1:
        found = {key: tuple(tensor.shape) for key, tensor in sorted(tensors.items())}
        raise StoreError(f"{_ADAPTER} must hold one row as {_key(path)!r}, got {found}.")
    return rows[0], ids[0]


def _key(path: str) -> str:
    return f"{_PREFIX}{path}.trainable_tokens_delta"


def _tied(model: HookedTransformer) -> bool:
    W_E, W_U = embedding(model).detach(), model.W_U.detach()
    return W_E.shape == W_U.T.shape and torch.equal(W_E, W_U.T.to(W_E) * embedding_scale(model.cfg))


def _embedding(model: HookedTransformer) -> str:
    return family_of(model).embedding


def family_of(model: HookedTransformer) -> Family:
    """How the modules of a model are called in transformers.

    Raises:
        ModelError: that is not known.
    """
    architecture = model.cfg.original_architecture
    if architecture not in _FAMILIES:
        raise ModelError(
            f"model must be one of {sorted(_FAMILIES)} for a PEFT adapter, got {architecture!r}. "
            "Use the row or the edit itself."
        )
    return _FAMILIES[architecture]
