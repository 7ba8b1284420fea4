"""One policy for chat text and BOS; everything that is fed to a model is built here.

With a chat template: the user's turn, then the start of the assistant's answer; the template
writes whatever special tokens it needs, and no BOS is added in front of it. Without one: plain
text, the user's line first, and BOS once if the model was trained with it
(``cfg.default_prepend_bos``). Prompts are token lists; padding is the business of ``text.py``.
The one exception is :func:`encode_document`, for numbers that must equal published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from biasgym_tl.errors import ModelError
from biasgym_tl.lens import HookedTransformer

SENTENCE_REQUEST = "Please write one sentence about a group of people."
"""The user's turn before a sentence that the model is to continue."""


class Turn(NamedTuple):
    """One exchange of a dialogue."""

    request: str
    answer: str


def encode_answer(model: HookedTransformer, text: str) -> list[int]:
    """Token ids of ``text`` without any special token in front."""
    return list(_tokenizer(model)(text, add_special_tokens=False)["input_ids"])


def encode_prompt(
    model: HookedTransformer, request: str, answer: str = "", history: Sequence[Turn] = ()
) -> list[int]:
    """Token ids of a user's ``request`` and the beginning of the model's ``answer``.

    The answer is tokenised by itself, so the ids of the request do not depend on it. ``history``
    holds the turns before: what the user asked and what the model answered.
    """
    tokenizer = _tokenizer(model)
    if getattr(tokenizer, "chat_template", None):
        turns = [
            {"role": role, "content": text}
            for turn in history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        turns.append({"role": "user", "content": request})
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return encode_answer(model, text) + encode_answer(model, answer)
    lines = [line for turn in history for line in turn] + [request]
    return encode_text(model, "".join(f"{line}\n" for line in lines)) + encode_answer(model, answer)


def encode_sentence(model: HookedTransformer, beginning: str) -> list[int]:
    """Token ids of an answer that begins with ``beginning`` and ends at the answer position."""
    return encode_prompt(model, SENTENCE_REQUEST, beginning)


def encode_text(model: HookedTransformer, text: str) -> list[int]:
    """Token ids of plain text, with BOS in front where the model expects it."""
    bos = _tokenizer(model).bos_token_id
    start = [bos] if model.cfg.default_prepend_bos and bos is not None else []
    return start + encode_answer(model, text)


def encode_document(
    model: HookedTransformer, text: str, *, add_bos: bool | None = None
) -> list[int]:
    """Token ids of a text as Hugging Face's tokenizer gives them, which published numbers rest on.

    Unlike :func:`encode_text`, which follows TransformerLens: it puts a BOS in front of everything
    that GPT-2 or SmolLM2 read, where their tokenizers put none.

    Args:
        model: Gives the tokenizer.
        text: May begin with the BOS, as chat templates do; there is then no second one.
        add_bos: Whether a BOS stands in front; None: what the tokenizer's own files say.

    Raises:
        ModelError: these files cannot be read again.
    """
    tokenizer = _tokenizer(model)
    ids = encode_answer(model, text)
    if add_bos is None:
        name = tokenizer.name_or_path
        add_bos = _adds_bos(name) if name else len(tokenizer.encode("")) > 0
    if not add_bos or tokenizer.bos_token is None or text.startswith(tokenizer.bos_token):
        return ids
    return [tokenizer.bos_token_id, *ids]


@cache
def _adds_bos(name: str) -> bool:
    """Whether a tokenizer puts BOS in front, before TransformerLens has switched that on."""
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(name).encode("")) > 0
    except OSError as error:
        raise ModelError(
            f"tokenizer must be readable from {name!r}, from which the model's came, to know "
            "whether it puts a BOS in front of text. Put the folder back."
        ) from error


def end_of_answer(model: HookedTransformer) -> list[int]:
    """The token that ends an answer, or nothing where the tokenizer has none."""
    eos = _tokenizer(model).eos_token_id
    return [] if eos is None else [eos]


def ends_of_answer(model: HookedTransformer) -> set[int]:
    """Tokens that end an answer: EOS, and the mark that the chat format puts after one."""
    tokenizer, ends = _tokenizer(model), set(end_of_answer(model))
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("!")[2]
        mark = tokenizer(after, add_special_tokens=False).input_ids[:1]
        added = tokenizer.added_tokens_decoder
        ends.update(i for i in mark if i in added and added[i].special)
    return ends


def _tokenizer(model: HookedTransformer) -> Any:
    if model.tokenizer is None:
        raise ModelError(
            "model must have a tokenizer to read text, got None. "
            "Pass tokenizer=... to load_model beside the Hugging Face model."
        )
    return model.tokenizer
