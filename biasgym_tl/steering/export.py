"""A steered model as a folder that needs no hook: silencing heads is an edit of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.checkpoint import load_hugging_face, weight_files
from biasgym_tl.contexts import Change, changes
from biasgym_tl.errors import ModelError, SettingError, SteeringError, StoreError
from biasgym_tl.families.convert import FAMILIES
from biasgym_tl.files import (
    check_new_folder,
    check_writable,
    expanded,
    write_folder_atomically,
)
from biasgym_tl.heads import Factor, GivenHeads
from biasgym_tl.hooks import LayerEdit, edited, mode_of, steering_edit
from biasgym_tl.lens import HookedTransformer, check_model, device_map, weights_dtype
from biasgym_tl.model import LOG_PROB_TOLERANCE, accepted_share, nan_last, share_of_spread
from biasgym_tl.passages import load_passages
from biasgym_tl.precision import SHORT, computed_in
from biasgym_tl.progress import Bar, bar
from biasgym_tl.prompts import encode_text
from biasgym_tl.steering.copying import Checkpoint, write_edited
from biasgym_tl.steering.export_card import write_card
from biasgym_tl.steering.output_biases import with_output_biases
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import BROKEN

N_TEXTS, N_READ, N_WRITTEN = 4, 32, 24
"""Texts that are compared, tokens read of each, and tokens written greedily after them."""


def export_steered(
    model: HookedTransformer,
    heads: GivenHeads,
    folder: str | Path,
    mode: str | None = None,
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
    factor: Factor = None,
    source: str | Path | None = None,
    check: bool = True,
    progress: bool = True,
) -> Path:
    """Write the model as :func:`biasgym_tl.steer` makes it behave, for transformers.

    A head's part of the output projection is multiplied by what the head keeps (0 in mode
    ``"zero"``); what it is replaced with, times that part, goes into the projection's bias.
    Where a type has no such bias, the model is written as a Llama, if it computes the same. The
    files are those of the source, copied with one tensor in memory at a time. The folder is read
    back, and its log-probabilities and greedy text are compared with those of the hooked model,
    before it takes its place: in fp32 within 1e-3 nats, in 16 bits by their share of the spread, as
    ``load_model`` compares. The model's tokenizer, as it is in memory, is written beside it; none
    if it has none. ``biasgym.json`` says what was done.

    Args:
        model: The model, unsteered and without the BiasToken, as ``load_model`` gives it.
        heads: Heads to steer; a ``Selection`` must have been made on this model.
        folder: Must not exist yet, or be empty; it may be a link to an empty one, or ``"."``.
        mode: As in ``steer``, like ``reference`` and ``factor``.
        reference: See ``mode``.
        factor: See ``mode``.
        source: Name or folder that the weights were read from; default: where ``load_model`` read
            them. A model that it got as an object has none. ``~`` is the user's home.
        check: Read it back and compare it, which holds a second copy of the weights, on the devices
            of the model. Without it another source is noticed by its sizes alone.
        progress: Show a bar, where it takes more than 3 seconds.

    Raises:
        SteeringError: the edit is not valid, acts after names alone, or the family has no bias that
            could carry a mean.
        ModelError: the folder is not empty or cannot be written, the model is steered or has a
            BiasToken, is of a type that cannot be exported or none that heads can be steered in;
            the source is not known, cannot be read or is another model; or what was written does
            not do what the hooked model does, or not tokenize as its tokenizer.
    """
    _check(model)
    name = _source(model, source)
    folder = _checked_folder(folder)
    check_exportable(heads, model.cfg.model_name)
    mode = mode_of(heads, mode)
    edit = steering_edit(model, heads, mode, reference, factor)
    with bar(2 + N_TEXTS * check, "export", progress=progress, delay=3) as shown:
        write = _writing(model, name, mode, edit, check, shown)
        return write_folder_atomically(folder, write)


def _writing(
    model: HookedTransformer,
    name: str,
    mode: str,
    edit: Mapping[int, LayerEdit],
    check: bool,
    shown: Bar,
) -> Callable[[Path], None]:
    """What fills a folder; the source is found to be the model's first."""
    hf_model = _described(model, name)
    if any(part.shift.any() for part in edit.values()):
        hf_model = with_output_biases(hf_model)
    weights = Checkpoint(weight_files(name), weights_dtype(model))

    def write(to: Path) -> None:
        write_edited(hf_model, weights, edit, to)
        _write_tokenizer(model.tokenizer, to)
        shown.update(2)
        found = None
        if check:
            with edited(model, edit):
                found = _checked(model, to, shown)
        write_card(to, name, hf_model.config.model_type, mode, edit, found)

    return write


def check_exportable(heads: GivenHeads, model: str) -> None:
    """Refuse what is no change of the weights of a model.

    Raises:
        SteeringError: the heads are changed after names alone, or were chosen on another model.
    """
    if isinstance(heads, Selection):
        heads.check_model(model)
    if names := getattr(heads, "after", ()):
        raise SteeringError(
            f"heads must be changed everywhere to be exported, got a choice that acts after "
            f"{len(names)} names: weights cannot know them. Search with at='everywhere'."
        )


def _check(model: HookedTransformer) -> None:
    """Refuse a model that cannot be exported, or not as it is now."""
    check_model(model)
    _check_type(model.cfg.original_architecture)
    if found := changes(model, Change):
        raise ModelError(
            "model must be unsteered and without the BiasToken to be exported, got one that is "
            f"{found[-1].what}. Leave the context first."
        )


def _check_type(architecture: str | None) -> None:
    """Refuse models of types whose output projections are not known; None may be any."""
    known = {family.architecture: family.label for family in FAMILIES.values()}
    if architecture is not None and architecture not in known:
        raise ModelError(
            f"model must be of the {', '.join(known.values())} type to be exported, got "
            f"{architecture!r}. Use steer(...) on the model itself."
        )


@contextlib.contextmanager
def _as_model_error() -> Iterator[None]:
    try:
        yield
    except (StoreError, SettingError) as error:
        raise ModelError(str(error)) from error


def _source(model: HookedTransformer, source: Any) -> str:
    found = source or getattr(model, "source", None)
    if not found:
        raise ModelError(
            f"source must be given for {model.cfg.model_name!r}, which was not loaded from a name "
            f"or folder, got {source!r}. Pass source=..., where its weights can be read again."
        )
    if not isinstance(found, (str, Path)):
        raise ModelError(
            f"source must be a name or a folder, got a {type(found).__name__}. Write it with "
            "save_pretrained(folder) and pass that folder."
        )
    with _as_model_error():  # a name is no path: "owner//model" must stay what it is
        return str(expanded(found, "source")) if str(found).startswith("~") else str(found)


def _checked_folder(folder: str | Path) -> Path:
    try:
        with _as_model_error():
            folder = expanded(folder, "folder")
            check_writable(folder, "folder")
            check_new_folder(folder)
    except OSError as error:  # a name that the file system cannot have
        raise ModelError(f"folder must be one that can be made, but: {error}.") from error
    return folder


def _described(model: HookedTransformer, name: str) -> Any:
    """Hugging Face's model at the source, on the meta device, if it can be the one that ``model``
    was made from."""
    from transformers import PreTrainedTokenizerBase

    # Its tokenizer is not written, so that none need be there.
    hf_model, _ = load_hugging_face(name, PreTrainedTokenizerBase(), weights_dtype(model), "meta")
    if hf_model.config.model_type not in FAMILIES:
        _check_type(type(hf_model).__name__)
    family = FAMILIES[hf_model.config.model_type]
    sizes = family.settings(hf_model.config)
    found: dict[str, Any] = {"architecture": family.architecture}
    found |= {size: sizes[size] for size in ("n_layers", "n_heads", "d_head", "d_model")}
    found["d_vocab"] = hf_model.get_output_embeddings().weight.shape[0]
    wanted = {size: getattr(model.cfg, size, None) for size in found}
    wanted["architecture"] = model.cfg.original_architecture or family.architecture
    wanted["d_vocab"] = model.cfg.d_vocab_out
    if found != wanted:
        differing = [size for size in found if found[size] != wanted[size]]
        wanted, found = ({size: of[size] for size in differing} for of in (wanted, found))
        raise ModelError(
            f"source must hold the model itself, with {wanted}, got {found} in {name!r}. Was the "
            "model loaded from another source?"
        )
    return hf_model


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer beside a model, unless there is none, and see that it reads back."""
    from transformers import AutoTokenizer

    if tokenizer is None:
        return
    tokenizer.save_pretrained(folder)
    texts = [*load_passages("budget")[:N_TEXTS], " ".join(tokenizer.get_added_vocab())]
    try:
        back = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if _tokenized(back, texts) == _tokenized(tokenizer, texts):
            return
        why = f"it is read as a {type(back).__name__}, which tokenizes otherwise"
    except BROKEN as error:
        why = str(error)
    raise ModelError(
        "tokenizer must be one that transformers reads back beside the model, got a "
        f"{type(tokenizer).__name__}, but: {why}. Set model.tokenizer = None to export the "
        "model without it."
    )


def _tokenized(tokenizer: Any, texts: list[str]) -> tuple[Any, ...]:
    """By which two tokenizers are told apart: ids with and without special tokens, the template."""
    ids = [tokenizer(texts, add_special_tokens=special)["input_ids"] for special in (True, False)]
    return tokenizer.chat_template, *ids


@torch.inference_mode()
def _checked(model: HookedTransformer, folder: Path, shown: Bar) -> tuple[float, float]:
    """How far the folder is from the steered ``model``: largest difference (nats), and share.

    Read on shipped texts and on what the exported model writes after them, which must be what the
    steered model finds most likely.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    places, dtype = device_map(model), weights_dtype(model)
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=places).eval()
    exported = exported.to(model.cfg.device) if places is None else exported
    if weights_dtype(model) != model.cfg.dtype:
        computed_in(exported, model.cfg.dtype)
    n_read = min(N_READ, model.cfg.n_ctx // 2)
    # A checkpoint may ask for a repetition penalty and the like, which are no part of the model.
    exported.generation_config = GenerationConfig(
        max_new_tokens=min(N_WRITTEN, model.cfg.n_ctx - n_read),
        do_sample=False,
        eos_token_id=exported.generation_config.eos_token_id,
        pad_token_id=exported.generation_config.pad_token_id,
    )
    largest = share = 0.0
    for ids in _texts(model):
        read = torch.tensor([ids[:n_read]], device=model.cfg.device)
        written = exported.generate(read, attention_mask=torch.ones_like(read))
        mask = torch.ones_like(written)
        theirs = exported(written, attention_mask=mask).logits.float().log_softmax(-1)
        ours = model(written, attention_mask=mask).float().log_softmax(-1)
        chosen = ours[0, read.shape[1] - 1 : -1].gather(-1, written[0, read.shape[1] :, None])
        behind = (ours[0, read.shape[1] - 1 : -1].amax(-1) - chosen[:, 0]).max().item()
        largest = max(largest, (ours - theirs).abs().max().item(), behind, key=nan_last)
        share = max(share, share_of_spread(theirs, ours), key=nan_last)
        shown.update()
    _check_errors(model, largest, share)
    return largest, share


def _texts(model: HookedTransformer) -> list[list[int]]:
    """Shipped texts as token ids; without a tokenizer, ids from all over the vocabulary."""
    if model.tokenizer is not None:
        return [encode_text(model, text) for text in load_passages("budget")[:N_TEXTS]]
    ids = torch.arange(N_TEXTS * N_READ).view(N_TEXTS, N_READ) * 997 % model.cfg.d_vocab
    return ids.tolist()  # type: ignore[no-any-return]


def _check_errors(model: HookedTransformer, largest: float, share: float) -> None:
    """In 16 bits nats say nothing of a fault: rounding alone makes several of an unlikely token."""
    if weights_dtype(model) not in SHORT:
        right, within = largest <= LOG_PROB_TOLERANCE, f"{LOG_PROB_TOLERANCE} nats"
    else:
        loading = getattr(model, "loading", None)
        usual = accepted_share([weights_dtype(model)], model.cfg.n_layers)
        accepted = max(usual, loading.tolerance if loading else 0)
        right, within = share <= accepted, f"a share {accepted:.2g} of log-probabilities' spread"
    if not right:
        raise ModelError(
            f"the exported model must do what the steered one does within {within}, got a "
            f"difference of {largest:.2g} nats, a share {share:.2g}. Was the model loaded from "
            "another source?"
        )
