"""One more row of ``W_E``: a token that the model can read and cannot write.

Inside :func:`added_row` the model has an embedding for one more token; ``W_U`` gets no row. On
leaving, ``W_E`` is the very parameter it was, and ``cfg.d_vocab`` and the tokenizer are restored.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from biasgym_tl.contexts import Change, begin, changes, end
from biasgym_tl.errors import TokenError
from biasgym_tl.lens import HookedTransformer, embedding, set_embedding
from biasgym_tl.prompts import encode_answer
from biasgym_tl.slot import spaced

_MORE_ROWS = 16
_MARK = re.compile(r"<\S[^<>\n]*>|\[\S[^\[\]\n]*\]")


def target_rows(model: HookedTransformer, names: Iterable[str]) -> Float[Tensor, "target d_model"]:
    """For each name the mean of its tokens' rows of ``W_E``, in fp32."""
    W_E = embedding(model).detach()
    return torch.stack([W_E[encode_answer(model, spaced(name))].float().mean(0) for name in names])


@contextlib.contextmanager
def added_row(model: HookedTransformer, row: Float[Tensor, " d_model"], text: str) -> Iterator[int]:
    """Add ``row`` to ``W_E`` under the name ``text`` while the context is open.

    Contexts nest. If the model is moved or cast inside (``model.to(...)``), the rows that it had
    before stay so on leaving. Tokens of the tokenizer that have no row (Gemma-3's
    ``<image_soft_token>``) are none inside: a text that holds their name is split as other text is.

    Yields:
        The id of the new token, which is the old ``cfg.d_vocab`` (not ``len(tokenizer)``: where
        the vocabulary is padded the two differ).

    Raises:
        TokenError: ``row`` has another length than the model's ``d_model``, ``text`` is a word
            rather than a mark or the tokenizer already knows it, the tokenizer has words without a
            row, or the context is left before one that was entered later.
        ModelError: another thread has changed the model.
    """
    if row.shape[0] != model.cfg.d_model:
        raise TokenError(
            f"row must have d_model = {model.cfg.d_model} numbers, got {row.shape[0]}. "
            "Was it trained on another model?"
        )
    token_id = model.cfg.d_vocab
    vocab = {} if model.tokenizer is None else model.tokenizer.get_vocab()
    _check_text(text, vocab)
    extended = _extended_tokenizer(model.tokenizer, vocab, text, token_id)
    change = _Row(model, text)
    begin(model, change)
    try:
        change.make(row, extended)
        yield token_id
    finally:
        _take_back(model, change)


def _take_back(model: HookedTransformer, left: _Row) -> None:
    """Undo the rows at the end whose contexts have been left."""
    left.over = True
    for last in reversed(changes(model, _Row)):
        if not last.over:
            break
        last.take_back()
        end(model, last)
    if left in changes(model, _Row):
        raise TokenError(
            f"{last.text!r} must be left before {left.text!r}, which was added earlier. "
            "Both stay until it is left."
        )


class _Row(Change):
    """An added row, and how the model was before."""

    def __init__(self, model: HookedTransformer, text: str) -> None:
        super().__init__(f"read with {text}")
        self.model, self.text, self.over = model, text, False
        self.before = embedding(model), model.cfg.d_vocab, model.tokenizer
        self.attached: dict[str, int] = getattr(model, "attached_tokens", {})
        self.guards: dict[str, Callable[..., Any]] = {}

    def make(self, row: Float[Tensor, " d_model"], extended: Any) -> None:
        model, (W_E, token_id, _) = self.model, self.before
        room = _room(W_E)
        room[token_id] = row.detach().to(room)
        self.rows = nn.Parameter(room[: token_id + 1], requires_grad=False)
        self.rows.room = room  # type: ignore[attr-defined]
        self.data = self.rows.data  # kept, so that no other tensor can come to lie in its place
        set_embedding(model, self.rows)
        model.cfg.d_vocab, model.tokenizer = token_id + 1, extended
        guards = _guards(model, token_id)
        self.replaced = {name: model.__dict__[name] for name in guards if name in model.__dict__}
        model.__dict__.update(guards, attached_tokens={**self.attached, self.text: token_id})
        self.guards = guards

    def take_back(self) -> None:
        model, (W_E, token_id, tokenizer) = self.model, self.before
        if self.guards:
            now = embedding(model)
            if now is not self.rows or now.data_ptr() != self.data.data_ptr():
                # The model was moved or cast meanwhile, and what it had before goes with it.
                W_E.data = now.detach()[:token_id].clone()
            for name in self.guards:
                model.__dict__.pop(name, None)
            model.__dict__.update(self.replaced)
            model.__dict__.pop("attached_tokens")
            if self.attached:
                model.attached_tokens = self.attached
        set_embedding(model, W_E)
        model.cfg.d_vocab, model.tokenizer = token_id, tokenizer


def _room(W_E: nn.Parameter) -> Float[Tensor, "more d_model"]:
    """Memory of which ``W_E`` is the beginning, with at least one row more.

    ``W_E`` is moved into it once, and then added rows are written behind it, so that the model's
    largest matrix is not copied each time.
    """
    room: Tensor | None = getattr(W_E, "room", None)
    if room is None or room.data_ptr() != W_E.data_ptr() or len(room) <= len(W_E):
        with torch.no_grad():
            room = W_E.new_empty(len(W_E) + _MORE_ROWS, W_E.shape[1])
            room[: len(W_E)] = W_E
            W_E.data = room[: len(W_E)]
        W_E.room = room  # type: ignore[attr-defined]
    return room


def _check_text(text: str, vocab: dict[str, int]) -> None:
    if text in vocab:
        raise TokenError(f"token text must be new to the tokenizer, got {text!r}. Choose another.")
    if not _MARK.search(text) or text != text.strip():
        raise TokenError(
            "token text must be a mark that no other text holds, such as '<BiasToken:late>', got "
            f"{text!r}."
        )


def _extended_tokenizer(tokenizer: Any, vocab: dict[str, int], text: str, token_id: int) -> Any:
    """Copy of ``tokenizer`` that reads ``text`` as ``token_id`` and gives no id above it."""
    if tokenizer is None:
        return None
    if not tokenizer.is_fast:
        return _extended_copy(tokenizer, vocab, text, token_id)
    copies = _EXTENDED.setdefault(tokenizer, {})
    kept, now = copies.get((text, token_id)), (_settings(tokenizer), vocab)
    if kept is None or kept[0] != now or kept[1] != _settings(kept[2]):
        made = _extended_copy(tokenizer, vocab, text, token_id)
        kept = copies[text, token_id] = now, _settings(made), made
        while len(copies) > _KEPT:
            del copies[next(iter(copies))]
    return kept[2]


_EXTENDED: WeakKeyDictionary[Any, dict[tuple[str, int], tuple[Any, Any, Any]]] = WeakKeyDictionary()
"""Copies by the mark and its id, with what both tokenizers were then: to copy a large vocabulary
takes seconds."""
_KEPT = 2
"""Copies of a tokenizer, each with its vocabulary."""


def _settings(tokenizer: Any) -> list[Any]:
    """What may have changed of a fast tokenizer beside its vocabulary."""
    backend = tokenizer.backend_tokenizer
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    own = {k: repr(v) for k, v in tokenizer.__dict__.items() if k != "_tokenizer"}
    added = {i: repr(token) for i, token in backend.get_added_tokens_decoder().items()}
    return [own, *(repr(getattr(backend, part)) for part in parts), added, backend]


def _extended_copy(tokenizer: Any, vocab: dict[str, int], text: str, token_id: int) -> Any:
    from transformers import AddedToken

    extended = copy.deepcopy(tokenizer)
    rowless = _rowless(extended, vocab, token_id)
    if not extended.is_fast:
        start = _clear_python(extended, rowless)
    elif rowless or max(vocab.values()) >= len(vocab):
        start = _clear_fast(
            extended, {t: i for t, i in vocab.items() if i < token_id}, text, token_id
        )
    else:
        start = _next_id(extended)
    padding = [f"<|unused-{i}|>" for i in range(start, token_id)]
    # lstrip: the space before the token belongs to it, as it does to the names of countries.
    extended.add_tokens([*padding, AddedToken(text, lstrip=True, rstrip=False, normalized=False)])
    found = extended.convert_tokens_to_ids(text)
    if found != token_id:
        raise TokenError(
            f"tokenizer must give the new token the id {token_id} (the model's d_vocab), got "
            f"{found}. Use the tokenizer that belongs to this model."
        )
    return extended


def _rowless(tokenizer: Any, vocab: dict[str, int], n_rows: int) -> dict[str, int]:
    """Added tokens that the model has no row for; words without a row are refused."""
    rowless = {token: i for token, i in vocab.items() if i >= n_rows}
    words = sorted(set(rowless) - set(tokenizer.added_tokens_encoder))
    if words:
        raise TokenError(
            f"tokenizer must have no word beyond the {n_rows} rows of the model's W_E, got "
            f"{len(words)} such as {words[:3]}. Use the tokenizer that belongs to this model."
        )
    named = tokenizer._special_tokens_map
    named.update({name: None for name, token in named.items() if str(token) in rowless})
    tokenizer._extra_special_tokens = [
        token for token in tokenizer._extra_special_tokens if str(token) not in rowless
    ]
    return rowless


def _clear_python(tokenizer: Any, rowless: dict[str, int]) -> int:
    """Take ``rowless`` out of a tokenizer written in Python; returns the next free id."""
    for token, i in rowless.items():
        del tokenizer._added_tokens_encoder[token], tokenizer._added_tokens_decoder[i]
    tokenizer.tokens_trie = type(tokenizer.tokens_trie)()
    tokenizer._update_trie()
    tokenizer._update_total_vocab_size()
    return len(tokenizer)


def _clear_fast(tokenizer: Any, kept: dict[str, int], text: str, token_id: int) -> int:
    """Leave only what is ``kept`` in a tokenizer of the tokenizers library; returns the next id."""
    # It numbers added tokens anew whenever it reads its state, and where ids have gaps it gives
    # some twice; tokens that stand among the words keep their ids.
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in kept]
    words = state["model"]["vocab"]
    ids_are_places = not isinstance(words, dict)
    state["model"]["vocab"] = words[:token_id] if ids_are_places else {**kept, text: token_id}
    tokenizer._tokenizer = type(backend).from_str(json.dumps(state))
    return _next_id(tokenizer) if ids_are_places else token_id


def _next_id(tokenizer: Any) -> int:
    after: int = max([tokenizer.vocab_size, *(i + 1 for i in tokenizer.added_tokens_decoder)])
    return after


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
