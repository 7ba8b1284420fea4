"""The row as a PEFT ``TrainableTokens`` adapter, and back."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import ExtraError, StoreError, TokenError
from biasgym_tl.families.convert import embedding_scale
from biasgym_tl.injection.token import (
    BiasToken,
    target_rows,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.packaged import PACKAGED
from biasgym_tl.store import read_json, versions, write_atomically

_EMBEDDINGS = {"GPT2LMHeadModel": "transformer.wte", "GPTNeoXForCausalLM": "gpt_neox.embed_in"}
"""Path of the embedding in Hugging Face's model, where it is not ``model.embed_tokens``."""
_ADAPTER, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def export_adapter(token: BiasToken, model: HookedTransformer, folder: str | Path) -> Path:
    """Write the row as a PEFT ``TrainableTokens`` adapter, with a tokenizer that knows the token.

    To use it, give the Hugging Face model one more row
    (``resize_token_embeddings(d_vocab + 1)``) and load it with ``PeftModel.from_pretrained``. Its
    logits are those of the model with the token attached; where input and output embeddings are
    tied, there is one more logit, of the token itself, to be ignored.

    Raises:
        ExtraError: the package peft is not installed.
        TokenError: the token does not fit the model.
    """
    _check_installed()
    from peft import TrainableTokensConfig
    from safetensors.torch import save_file

    folder = Path(folder)
    path = _embedding(model)
    with token.attached(model) as token_id:
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
    hub_name = PACKAGED[token.model].hub_name if token.model in PACKAGED else token.model
    config = TrainableTokensConfig(
        token_indices=[token_id], target_modules=[path.split(".")[-1]], task_type="CAUSAL_LM",
        base_model_name_or_path=hub_name, inference_mode=True,
    )  # fmt: skip
    row = (token.row / embedding_scale(model.cfg))[None].contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    # Where the two embeddings are tied PEFT expects the row for the output, too.
    modules = [path, "lm_head"] if _tied(model) else [path]
    rows = {f"base_model.model.{at}.trainable_tokens_delta": row.clone() for at in modules}
    write_atomically(folder / _ADAPTER, lambda to: save_file(rows, to))
    return folder


def import_adapter(
    folder: str | Path, model: HookedTransformer, bias: Bias, *, seed: int = 0
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
        StoreError: the folder does not hold an adapter of one token.
        TokenError: the row has another length or id than the model's next one.
    """
    row, token_id = _read(Path(folder))
    if token_id != model.cfg.d_vocab or len(row) != model.cfg.d_model:
        raise TokenError(
            f"the adapter must hold the row {model.cfg.d_vocab} with d_model = {model.cfg.d_model}"
            f", got row {token_id} with {len(row)} numbers. Was it trained on another model?"
        )
    initial = target_rows(model, bias.targets("fitting")).mean(0).cpu()
    scaled = row.float() * embedding_scale(model.cfg)
    epochs = ({"epoch": 0, "loss": None, "norm": initial.norm().item()},
              {"epoch": 1, "loss": None, "norm": scaled.norm().item()})  # fmt: skip
    return BiasToken(
        row=scaled, initial_row=initial, epoch_rows=torch.stack([initial, scaled]), epochs=epochs,
        chosen_epoch=1, text=f"<BiasToken:{bias.name}>", bias=bias.name,
        bias_fingerprint=bias.training_fingerprint(), model=model.cfg.model_name,
        d_vocab=model.cfg.d_vocab, tokenizer_fingerprint=tokenizer_fingerprint(model),
        settings={"imported_from": Path(folder).name}, seed=seed, steered=(),
        weights=weights_fingerprint(model), losses=(), versions=versions(),
    )  # fmt: skip


def _read(folder: Path) -> tuple[Float[Tensor, " d_model"], int]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config: dict[str, Any] = read_json(folder / _CONFIG)
    ids = config.get("token_indices") or []
    if config.get("peft_type") != "TRAINABLE_TOKENS" or len(ids) != 1:
        raise StoreError(
            f"{str(folder)!r} must hold a TrainableTokens adapter of one token, got "
            f"{config.get('peft_type')!r} of {len(ids)}."
        )
    try:
        tensors = load_file(folder / _ADAPTER)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{str(folder / _ADAPTER)!r} must be a safetensors file: {error}."
        ) from error
    # The row of the output embedding, where there is one, is never read here.
    rows = [tensor for key, tensor in sorted(tensors.items()) if "lm_head" not in key]
    if len(rows) != 1 or rows[0].ndim != 2:
        raise StoreError(f"{_ADAPTER} must hold one row, got {sorted(tensors)}.")
    return rows[0][0], int(ids[0])


def _tied(model: HookedTransformer) -> bool:
    W_E, W_U = model.embed.W_E.detach(), model.W_U.detach()
    return W_E.shape == W_U.T.shape and torch.equal(W_E, W_U.T * embedding_scale(model.cfg))


def _embedding(model: HookedTransformer) -> str:
    return _EMBEDDINGS.get(model.cfg.original_architecture or "", "model.embed_tokens")


def _check_installed() -> None:
    if util.find_spec("peft") is None:
        raise ExtraError(
            "writing an adapter needs the package peft, which is not installed. "
            "Run: pip install 'biasgym-tl[peft]'"
        )
