"""A steering as a LoRA adapter: to scale a head is a change of low rank of its layer's output."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from biasgym_tl.edits import Edit
from biasgym_tl.errors import SteeringError
from biasgym_tl.files import expanded, write_folder_atomically
from biasgym_tl.injection.adapter import base_of, check_peft, family_of, write_adapter
from biasgym_tl.lens import HookedTransformer, layer_matrices


def export_lora(edit: Edit, model: HookedTransformer, folder: str | Path) -> Path:
    """Write an edit that adds nothing as an adapter, for ``PeftModel.from_pretrained``.

    ``B A = (factor - 1) W_O`` of the changed heads: ``A`` picks their entries of ``z``, ``B`` holds
    their part of the output projection, so that the rank is ``d_head`` for each head of a layer.
    Exact but for rounding, also when it is merged. It holds weights of the model: some megabytes,
    where the edit has kilobytes.

    Args:
        edit: Of this model, in mode ``"zero"`` or ``"scale"``.
        model: The model.
        folder: Where it is written.

    Raises:
        SteeringError: the edit adds a mean, which an adapter cannot carry, or acts after names.
        ModelError: it is of another model, or of a type whose projections are not known.
        ExtraError: the package peft is not installed.
        StoreError: ``folder`` is not new or empty.
    """
    check_peft()
    family, layers = family_of(model), layer_matrices(model)
    if edit.after or bool(edit.shift.any()):
        what = "acts after names" if edit.after else "adds a mean"
        raise SteeringError(
            f"an edit must scale heads everywhere to be an adapter, got one that {what}. Use mode "
            "'zero' or 'scale', or hand on the edit itself (--edit)."
        )
    edit.check_layers(layers, model.cfg.n_heads)
    from peft import LoraConfig

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for layer, places in edit.places().items():
        name = family.output.format(layer)
        output = layers[layer].output.detach().cpu()
        W_O = output.reshape(edit.n_heads, -1, output.shape[1])
        heads = [edit.heads[place].head for place in places]
        change = (edit.factor[places].double() - 1)[:, None, None] * W_O[heads].double()
        picks = torch.eye(len(output)).view(edit.n_heads, -1, len(output))[heads]
        ranks[name] = change.shape[0] * change.shape[1]
        tensors[f"{name}.lora_A.weight"] = picks.flatten(0, 1)
        tensors[f"{name}.lora_B.weight"] = change.flatten(0, 1).T.float()
    config = LoraConfig(
        r=max(ranks.values()), lora_alpha=max(ranks.values()), rank_pattern=ranks,
        alpha_pattern=ranks, target_modules=list(ranks), task_type="CAUSAL_LM",
        base_model_name_or_path=base_of(edit.model), inference_mode=True,
        fan_in_fan_out=family.architecture == "GPT2LMHeadModel",
    )  # fmt: skip
    folder = expanded(folder, "folder")
    return write_folder_atomically(folder, lambda to: write_adapter(to, config, tensors))
