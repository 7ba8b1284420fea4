"""Where in a text an edit acts: from the first of some names on, such as those of a bias's targets.

What is edited there alone cannot touch a sentence about a train. A gate belongs to a run of the
model, not to its weights, so a steering with one cannot be exported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from biasgym_tl.errors import ModelError, SteeringError
from biasgym_tl.lens import HookedTransformer, cache_entry
from biasgym_tl.prompts import encode_answer, not_attached
from biasgym_tl.slot import spaced


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of a gate, each once.

    Raises:
        SteeringError: it is one text instead of several, or one of them is none or empty.
    """
    one = isinstance(names, str) or not isinstance(names, Iterable)
    given = () if one else tuple(names)
    if one or not all(isinstance(n, str) and n.strip() for n in given):
        raise SteeringError(
            f"after must be a list of names such as ['France', 'Japan'], got {names!r}."
        )
    return tuple(dict.fromkeys(name.strip() for name in given))


class Gate:
    """Open from the last token of the first of ``names`` on, in each sequence by itself."""

    def __init__(self, model: HookedTransformer, names: Sequence[str]) -> None:
        """``names`` are read with the tokenizer that the model has when it runs, and a BiasToken
        that is attached then is one of them: it stands where a target would. Names are found after
        a space and at the beginning of a text, also with a capital, and where their tokens are part
        of a longer word: what follows is not known.
        """
        self.model, self.names = model, check_names(names)
        self.tokenizer: Any = None
        self.tokens: Int[Tensor, "batch pos"] | None = None
        self.found: Bool[Tensor, "batch pos"] | None = None
        self.inside = self.own = False
        """Whether the model is running, and whether it was when it embedded the tokens: a replay
        embeds them beforehand."""

    def __call__(self, z: Float[Tensor, "batch pos ..."]) -> Bool[Tensor, "batch pos 1 1"]:
        """Where it is open, at the tokens that the model is run on and has made ``z`` of.

        Raises:
            ModelError: the model is run from a residual stream, or from one of other tokens than
                it embedded last.
        """
        if self.found is None:
            raise ModelError(
                "a model must be run from its tokens while a steering acts after names, got a "
                "residual stream. Leave start_at_layer out, and in generate(...) use_past_kv_cache."
            )
        return self.found[:, :, None, None].to(z.device)

    def _opened(self, read: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        ends = torch.zeros_like(read, dtype=torch.bool)
        for pieces in self._pieces():
            n = pieces.shape[1]
            if n <= read.shape[1]:
                windows = read.unfold(1, n, 1)[:, :, None]
                ends[:, n - 1 :] |= (windows == pieces.to(read)).all(-1).any(-1)
        return ends.cumsum(1) > 0

    def _pieces(self) -> list[Int[Tensor, "name length"]]:
        """Tokens of the names, those of one length together."""
        if self.tokenizer is not self.model.tokenizer:
            self.tokenizer, by_length = self.model.tokenizer, dict[int, set[tuple[int, ...]]]()
            names = [*self.names, *getattr(self.model, "attached_tokens", ())]
            known = [name for name in names if not not_attached(self.model, name)]
            for name in known:
                begins = name[0].upper() + name[1:]
                for text in (name, spaced(name), begins, spaced(begins)):
                    pieces = tuple(encode_answer(self.model, text))
                    if pieces and self.model.tokenizer.unk_token_id not in pieces:
                        by_length.setdefault(len(pieces), set()).add(pieces)
            if known and not by_length:
                raise SteeringError(
                    f"after must hold names that this tokenizer knows, got {known}."
                )
            self.pieces = [torch.tensor(sorted(p)) for p in by_length.values()]
        return self.pieces

    @contextmanager
    def watching(self, layers: Collection[int]) -> Iterator[None]:
        """Context in which it sees what the model is run on, open for the edits of some layers.

        What a key-value cache holds is noted beside the keys of the first of them.
        """
        self.first = min(layers)
        first, last = (self.model.blocks[layer] for layer in (self.first, max(layers)))
        handles = [
            self.model.register_forward_pre_hook(self._enter),
            self.model.register_forward_hook(self._leave, always_call=True),
            self.model.embed.register_forward_pre_hook(self._see),
            first.register_forward_pre_hook(self._begin, with_kwargs=True),
            last.register_forward_hook(self._end),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: Any, given: Any) -> None:
        self.inside = True

    def _see(self, module: Any, given: tuple[Tensor, ...]) -> None:
        self.tokens, self.found, self.own = given[0], None, self.inside

    def _begin(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens, entry = self.tokens, cache_entry(self.model, self.first, given, named)
        self.tokens = self.found = None
        if tokens is None or tokens.shape != given[0].shape[:2]:
            return
        read = tokens
        if entry is not None:
            read = torch.cat([_held(entry, tokens), tokens], 1)
            if not entry.frozen:
                entry.read = read
        self.found = self._opened(read)[:, -tokens.shape[1] :]

    def _end(self, module: Any, given: Any, made: Any) -> None:
        self.found = None

    def _leave(self, module: Any, given: Any, made: Any) -> None:
        if self.own:  # what a run that stopped early has seen is not of the next
            self.tokens = self.found = None
        self.inside = self.own = False


def _held(entry: Any, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch held"]:
    """Tokens of which a key-value cache holds the keys."""
    held: Tensor = getattr(entry, "read", tokens[:, :0])
    n = entry.past_keys.shape[1]
    if held.shape[1] < n:
        raise ModelError(
            "a key-value cache must be made in the steering that acts after names, got one that "
            "was made before it. Make it anew."
        )
    return held[:, :n].to(tokens)  # another gate may have noted the new ones already
