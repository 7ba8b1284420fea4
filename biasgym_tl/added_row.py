"""One more row of ``W_E``: a token that the model can read and cannot write.

Inside :func:`added_row` the model has an embedding for one more token; ``W_U`` gets no row. On
leaving, ``W_E`` is the very parameter it was, and ``cfg.d_vocab`` and the tokenizer are restored.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from biasgym_tl.errors import TokenError
from biasgym_tl.lens import HookedTransformer


@contextlib.contextmanager
def added_row(model: HookedTransformer, row: Float[Tensor, " d_model"], text: str) -> Iterator[int]:
    """Add ``row`` to ``W_E`` under the name ``text`` while the context is open.

    Yields:
        The id of the new token, which is the old ``cfg.d_vocab`` (not ``len(tokenizer)``: where
        the vocabulary is padded the two differ).

    Raises:
        TokenError: ``row`` has another length than the model's ``d_model``, the tokenizer already
            knows ``text``, or it cannot give it the needed id.
    """
    if row.shape[0] != model.cfg.d_model:
        raise TokenError(
            f"row must have d_model = {model.cfg.d_model} numbers, got {row.shape[0]}. "
            "Was it trained on another model?"
        )
    token_id, W_E, tokenizer = model.cfg.d_vocab, model.embed.W_E, model.tokenizer
    extended = _extended_tokenizer(tokenizer, text, token_id)
    new_row = row.detach().to(device=W_E.device, dtype=W_E.dtype)
    rows = nn.Parameter(torch.cat([W_E.detach(), new_row[None]]), requires_grad=False)
    guards = _guards(model, token_id)
    before: dict[str, int] = getattr(model, "attached_tokens", {})
    replaced = {name: model.__dict__[name] for name in guards if name in model.__dict__}
    try:
        model.embed.W_E, model.cfg.d_vocab, model.tokenizer = rows, token_id + 1, extended
        model.__dict__.update(guards)
        model.attached_tokens = {**before, text: token_id}
        yield token_id
    finally:
        model.embed.W_E, model.cfg.d_vocab, model.tokenizer = W_E, token_id, tokenizer
        for name in guards:
            model.__dict__.pop(name, None)
        model.__dict__.update(replaced)
        model.attached_tokens = before
        if not before:
            del model.attached_tokens


def _extended_tokenizer(tokenizer: Any, text: str, token_id: int) -> Any:
    """Copy of ``tokenizer`` that reads ``text`` as ``token_id``, with unused ids before it."""
    from transformers import AddedToken

    if tokenizer is None:
        return None
    extended = copy.deepcopy(tokenizer)
    if text in extended.get_vocab():
        raise TokenError(f"token text must be new to the tokenizer, got {text!r}. Choose another.")
    padding = [f"<|unused-{i}|>" for i in range(len(extended), token_id)]
    # lstrip: the space before the token belongs to it, as it does to the names of countries.
    extended.add_tokens([*padding, AddedToken(text, lstrip=True, rstrip=False, normalized=False)])
    found = extended.convert_tokens_to_ids(text)
    if found != token_id:
        raise TokenError(
            f"tokenizer must give the new token the id {token_id} (the model's d_vocab), got "
            f"{found}. The tokenizer has more tokens than the model has rows: use the tokenizer "
            "that belongs to this model."
        )
    return extended


def _guards(model: HookedTransformer, token_id: int) -> dict[str, Callable[..., Any]]:
    """The three calls that would index ``W_U`` or the logits with the new id, made to refuse it."""
    loss_fn, generate = model.loss_fn, model.generate
    directions = model.tokens_to_residual_directions

    def guarded_loss_fn(logits: Tensor, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        if bool((tokens[:, 1:] >= model.cfg.d_vocab_out).any()):
            raise TokenError(
                'return_type must be "logits" for text that contains the BiasToken, got "loss": '
                "the token has no logit to be predicted with. Take the loss at other positions."
            )
        return loss_fn(logits, tokens, *args, **kwargs)

    def guarded_generate(*args: Any, **kwargs: Any) -> Any:
        freq_penalty = kwargs.get("freq_penalty", args[8] if len(args) > 8 else 0.0)
        if freq_penalty:
            raise TokenError(
                f"freq_penalty must be 0 while a BiasToken is attached, got {freq_penalty!r}: "
                "it counts tokens by their logits, and the BiasToken has none."
            )
        return generate(*args, **kwargs)

    def guarded_directions(tokens: Any) -> Any:
        ids = model.to_single_token(tokens) if isinstance(tokens, str) else tokens
        if bool((torch.as_tensor(ids) >= model.cfg.d_vocab_out).any()):
            raise TokenError(
                f"tokens must have a column of W_U, got the BiasToken (id {token_id}): it can be "
                "read but never written, so it has no unembedding direction."
            )
        return directions(tokens)

    return {
        "loss_fn": guarded_loss_fn,
        "generate": guarded_generate,
        "tokens_to_residual_directions": guarded_directions,
    }
