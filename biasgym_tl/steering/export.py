"""A steered model as a folder that needs no hook: silencing heads is an edit of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.contexts import Change, changes
from biasgym_tl.errors import ModelError, SettingError, SteeringError, StoreError
from biasgym_tl.families.convert import FAMILIES
from biasgym_tl.heads import Factor, GivenHeads, Head
from biasgym_tl.hooks import LayerEdit, edited, steering_edit
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.model import LOG_PROB_TOLERANCE, load_hugging_face
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_text
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import (
    check_new_folder,
    check_writable,
    versions,
    write_folder_atomically,
    write_json,
    write_text,
)

N_TEXTS, N_READ, N_WRITTEN = 4, 32, 24
"""Texts that are compared, tokens read of each, and tokens written greedily after them."""


def export_steered(
    model: HookedTransformer,
    heads: GivenHeads,
    folder: str | Path,
    mode: str = "zero",
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
    factor: Factor = None,
    source: str | Path | None = None,
) -> Path:
    """Write the model as :func:`biasgym_tl.steer` makes it behave, for transformers.

    A head's part of the output projection is multiplied by what the head keeps (0 in mode
    ``"zero"``); what it is replaced with, times that part, goes into the projection's bias. The
    folder is read back, and its log-probabilities and greedy text are compared with those of the
    hooked model, before it takes its place. ``biasgym.json`` in it says what was done.

    Args:
        model: The model, unsteered and without the BiasToken, as ``load_model`` gives it.
        heads: Heads to steer; a ``Selection`` must have been made on this model.
        folder: Must not exist yet, or be empty; it may be a link to an empty one, or ``"."``.
        mode: As in ``steer``, like ``reference`` and ``factor``.
        reference: See ``mode``.
        factor: See ``mode``.
        source: Name or folder that the weights were read from; default: where ``load_model`` read
            them. A model that it got as an object has none.

    Returns:
        ``folder``.

    Raises:
        SteeringError: the edit is not valid, or the family has no bias that could carry a mean.
        ModelError: the folder is not empty or cannot be written, the model is steered or has a
            BiasToken, the source is not known, cannot be read or is another model, or the exported
            model does not do what the hooked one does.
    """
    folder = Path(folder)
    name = _source(model, source)
    _check_folder(folder)
    if changes(model, Change):
        raise ModelError(
            "model must be unsteered and without the BiasToken to be exported, got one that is "
            f"{changes(model, Change)[-1].what}. Leave the context first."
        )
    if isinstance(heads, Selection):
        heads.check_model(model.cfg.model_name)
    edit = steering_edit(model, heads, mode, reference, factor)
    hf_model, tokenizer = load_hugging_face(name, None, model.cfg.dtype)
    apply_edit(hf_model, edit)

    def write(to: Path) -> None:
        hf_model.save_pretrained(to)
        tokenizer.save_pretrained(to)
        with edited(model, edit):
            error = _checked(model, to)
        done = {
            "source": name,
            "heads": [str(Head(layer, head)) for layer in edit for head in edit[layer].heads],
            "mode": mode,
            "factor": {
                str(Head(layer, head)): kept
                for layer, part in edit.items()
                for head, kept in zip(part.heads, part.factor.tolist(), strict=True)
            },
            "largest_log_prob_difference": error,
            "versions": versions(),
        }
        write_json(to / "biasgym.json", done)
        write_text(to / "README.md", _readme(done))
        # safetensors gives its files to their owner alone; the umask shows in the folder's mode.
        for path in filter(Path.is_file, to.rglob("*")):
            path.chmod(to.stat().st_mode & 0o666)

    return write_folder_atomically(folder, write)


def _source(model: HookedTransformer, source: str | Path | None) -> str:
    found = source or getattr(model, "source", None)
    if not found:
        raise ModelError(
            f"source must be given for {model.cfg.model_name!r}, which was not loaded from a name "
            f"or folder, got {source!r}. Pass source=..., where its weights can be read again."
        )
    return str(found)


def _check_folder(folder: Path) -> None:
    try:
        check_new_folder(folder)
        check_writable(folder, "folder")
    except (StoreError, SettingError) as error:
        raise ModelError(str(error)) from error


@torch.no_grad()
def apply_edit(hf_model: Any, edit: Mapping[int, LayerEdit]) -> None:
    """Change the output projections of a Hugging Face model in place.

    Raises:
        SteeringError: a bias is needed and the family has none.
    """
    family = FAMILIES[hf_model.config.model_type]
    if any(part.shift.any() for part in edit.values()):
        _give_biases(hf_model, family.output)
    for layer, part in edit.items():
        output = hf_model.get_submodule(family.output.format(layer))
        # [z, d_model]; Conv1D stores it so, Linear the other way round.
        weight = output.weight if type(output).__name__ == "Conv1D" else output.weight.T
        d_head = part.shift.shape[1]
        for head, factor, shift in zip(part.heads, part.factor, part.shift, strict=True):
            of_head = weight[d_head * head : d_head * (head + 1)]
            if shift.any():
                output.bias += (shift @ of_head.double()).to(output.bias)
            of_head *= factor.to(weight)


def _give_biases(hf_model: Any, name: str) -> None:
    """Make sure that every output projection has a bias; new ones are zero."""
    config = hf_model.config
    if hf_model.get_submodule(name.format(0)).bias is not None:
        return
    if not hasattr(config, "attention_bias"):
        raise SteeringError(
            f"mode must be 'zero' or 'scale' to export a {config.model_type} model, got a mean: "
            "its output projection can carry no bias."
        )
    config.attention_bias = True
    for layer in range(config.num_hidden_layers):
        attention = hf_model.get_submodule(name.format(layer).rpartition(".")[0])
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            module = attention.get_submodule(projection)
            module.bias = torch.nn.Parameter(module.weight.new_zeros(module.weight.shape[0]))


@torch.inference_mode()
def _checked(model: HookedTransformer, folder: Path) -> float:
    """Largest log-probability difference between the steered ``model`` and the folder (nats).

    Read on shipped texts and on what the exported model writes after them, which must be what the
    steered model finds most likely.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=model.cfg.dtype)
    exported = exported.to(model.cfg.device).eval()
    # A checkpoint may ask for a repetition penalty and the like, which are no part of the model.
    exported.generation_config = GenerationConfig(
        max_new_tokens=N_WRITTEN,
        do_sample=False,
        eos_token_id=exported.generation_config.eos_token_id,
        pad_token_id=exported.generation_config.pad_token_id,
    )
    largest = 0.0
    for text in load_passages("budget")[:N_TEXTS]:
        read = torch.tensor([encode_text(model, text)[:N_READ]], device=model.cfg.device)
        written = exported.generate(read, attention_mask=torch.ones_like(read))
        mask = torch.ones_like(written)
        theirs = exported(written, attention_mask=mask).logits.float().log_softmax(-1)
        ours = model(written, attention_mask=mask).float().log_softmax(-1)
        largest = max(largest, (ours - theirs).abs().max().item())
        chosen = ours[0, read.shape[1] - 1 : -1].gather(-1, written[0, read.shape[1] :, None])
        behind = ours[0, read.shape[1] - 1 : -1].amax(-1) - chosen[:, 0]
        largest = max(largest, behind.max().item())
    tolerance = LOG_PROB_TOLERANCE if model.cfg.dtype == torch.float32 else 0.5
    if not largest <= tolerance:
        raise ModelError(
            f"the exported model must do what the steered one does within {tolerance} nats, got a "
            f"difference of {largest:.2g}. Was the model loaded from another source?"
        )
    return largest


def _readme(done: Mapping[str, Any]) -> str:
    return f"""# {done["source"]}, steered

A copy of `{done["source"]}` with the output of {len(done["heads"])} attention heads changed
(mode "{done["mode"]}"): {", ".join(done["heads"])}. The edit is in the weights; no code is needed
beside transformers. Log-probabilities differ from the hooked model's by at most
{done["largest_log_prob_difference"]:.1e} nats on the texts that were compared. `biasgym.json` has
all settings. Steering hides a stereotype and can cost other abilities: evaluate before use.
"""
