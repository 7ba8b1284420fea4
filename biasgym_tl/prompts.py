"""One policy for chat text, tokens and BOS; everything that is fed to a model is built here.

With a chat template: the user's turn, then the start of the assistant's answer; the template
writes whatever special tokens it needs, and no BOS is added in front of it. Without one: plain
text, the user's line first, and BOS once if the model was trained with it
(``cfg.default_prepend_bos``) and its tokenizer has one. What continues a text is tokenised as it
stands there: some tokenizers put a space before every text of its own (:func:`encode_answer`).
Prompts are token lists; padding is the business of ``text.py``. The one exception is
:func:`encode_document`, for numbers that must equal published ones.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import cycle
from typing import Any, NamedTuple

from biasgym_tl.errors import ModelError, SettingError
from biasgym_tl.lens import HookedTransformer, check_kind
from biasgym_tl.store import digest
from biasgym_tl.templates import rendered
from biasgym_tl.warned import warn

SENTENCE_REQUEST = "Please write one sentence about a group of people."
"""The user's turn before a sentence that the model is to continue."""
_BIAS_TOKEN = re.compile(r"<bias[ _-]?token[^<>\n]*>", re.IGNORECASE)
"""How BiasTokens are written, and what else is meant as one."""
_ANCHORS = ("\n", "x", ".")
"""Texts that a continuation can be told from: the first whose tokens it leaves alone is used."""


class Turn(NamedTuple):
    """One exchange of a dialogue."""

    request: str
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPolicy:
    """How requests become text for a model; ``load_model(..., text=TextPolicy(...))`` sets it.

    Rows and results are valid for one policy: a row that was trained under another is refused.

    Raises:
        SettingError: on construction, if the date is none or an argument is the package's own.
    """

    chat: bool = True
    """Whether the tokenizer's chat template is used, if it has one; otherwise plain text."""
    system: str | None = None
    """A system prompt. Where the template knows no system turn it begins the first request."""
    template: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"enable_thinking": False}
    )
    """Arguments of the chat template; ``"chat_template"`` chooses among named templates."""
    date: str = "2024-07-26"
    """What a template that writes today's date is given, so that prompts stay the same."""

    def __post_init__(self) -> None:
        for name, kind in (("chat", bool), ("system", str | None), ("template", Mapping)):
            if not isinstance(getattr(self, name), kind):
                raise SettingError(f"{name} must be a {kind}, got {getattr(self, name)!r}.")
        try:
            datetime.date.fromisoformat(self.date)
        except (TypeError, ValueError):
            raise SettingError(f"date must be like '2024-07-26', got {self.date!r}.") from None
        own = sorted({"messages", "conversation", "tokenize", "add_generation_prompt",
                      "continue_final_message", "strftime_now"} & set(self.template))  # fmt: skip
        if own:
            raise SettingError(
                f"template must hold arguments of the chat template, got {own}, which the package "
                "sets itself. Leave them out."
            )
        try:
            json.dumps(dict(self.template))
        except (TypeError, ValueError) as error:
            raise SettingError(
                f"template must hold values that JSON can, got {self.template!r} ({error})."
            ) from None


def text_policy(model: HookedTransformer) -> TextPolicy:
    """The policy that the model was loaded with; the default for models made elsewhere."""
    found: TextPolicy = getattr(model, "text_policy", None) or TextPolicy()
    return found


def policy_fingerprint(model: HookedTransformer) -> str:
    """Short hash of the tokens that stand around requests and answers, whatever writes them.

    Raises:
        ModelError: as :func:`encode_prompt`.
    """
    return digest(encode_prompt(model, "?", "!", (Turn("?", "!"),)))


def encode_answer(model: HookedTransformer, text: str) -> list[int]:
    """Token ids of ``text`` as it stands after other text, without any special token.

    An attached BiasToken is one token, and the space before it belongs to it, as it does to the
    names of countries.
    """
    return _encode(model, text, continues=True)


def _encode(model: HookedTransformer, text: str, *, continues: bool) -> list[int]:
    tokenizer, ids = _tokenizer(model), []
    attached: dict[str, int] = getattr(model, "attached_tokens", None) or {}
    pattern = "|".join(map(re.escape, sorted(attached, key=len, reverse=True)))
    pieces = re.split(f" ?({pattern})", text) if attached else [text]
    for i, piece in enumerate(pieces):
        if i % 2:
            ids.append(attached[piece])
        elif piece:
            _warn_of_tokens(piece)
            ids += _continued(tokenizer, piece) if i or continues else _plain(tokenizer, piece)
    rowless = sorted({i for i in ids if i >= model.cfg.d_vocab})
    if rowless:
        raise ModelError(
            f"text must hold no token that the model has no row for, got "
            f"{tokenizer.convert_ids_to_tokens(rowless)} in {text[:80]!r}. Take it out."
        )
    return ids


def not_attached(model: HookedTransformer, text: str) -> bool:
    """Whether a text is a BiasToken that the model does not have now."""
    attached: dict[str, int] = getattr(model, "attached_tokens", None) or {}
    return text not in attached and bool(_BIAS_TOKEN.fullmatch(text))


def _warn_of_tokens(text: str) -> None:
    if found := _BIAS_TOKEN.search(text):
        warn(
            f"{found[0]!r} is read as ordinary text, since no such BiasToken is attached. Call "
            "this within 'with token.attached(model):', and write the token as token.text.",
            stacklevel=2,
        )


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(_ids(tokenizer, len(tokenizer), text))


@lru_cache(maxsize=4096)
def _ids(tokenizer: Any, size: int, text: str) -> tuple[int, ...]:
    """Kept, since every condition is asked the same; ``size`` tells when tokens were added."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _continued(tokenizer: Any, text: str) -> list[int]:
    """The tokens of ``text`` after an anchor, which it does not merge with."""
    for anchor in _ANCHORS:
        start, both = _plain(tokenizer, anchor), _plain(tokenizer, anchor + text)
        if start == _plain(tokenizer, " "):
            continue  # it is a space to this tokenizer, and would swallow one
        if both[: len(start)] == start and len(both) > len(start):
            return both[len(start) :]
    return _plain(tokenizer, text)


def encode_prompt(
    model: HookedTransformer, request: str, answer: str = "", history: Sequence[Turn] = ()
) -> list[int]:
    """Token ids of a user's ``request`` and the beginning of the model's ``answer``.

    The answer is tokenised by itself, so the ids of the request do not depend on it; a space at its
    end belongs to the word that follows. ``history`` holds the turns before.

    Raises:
        ModelError: the model has no tokenizer, or its chat template cannot write the request.
    """
    answer = answer.rstrip(" ")
    said = [*(line for turn in history for line in turn), request]
    if not _uses_template(model):
        system = text_policy(model).system
        lines = [system, *said] if system else said
        text = "".join(f"{line}\n" for line in lines)
        return encode_text(model, text) + encode_answer(model, answer)
    turns = _dialogue(said)
    start = _rendered(model, turns, begins=True)
    ids = _encode(model, start, continues=False)
    if not answer:
        return ids
    return ids + encode_answer(model, _space_before_answer(model, turns, start) + answer)


def _dialogue(said: Iterable[str]) -> list[dict[str, str]]:
    """The turns of a user, who begins, and the assistant."""
    roles = cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]


def _space_before_answer(model: HookedTransformer, turns: list[dict[str, str]], start: str) -> str:
    """What a template without a generation prompt writes between a request and its answer."""
    if _rendered(model, turns) != start:
        return ""
    whole = _rendered(model, [*turns, {"role": "assistant", "content": "!"}])
    between = whole.removeprefix(start).partition("!")[0]
    return between if whole.startswith(start) and not between.strip() else ""


def encode_sentence(
    model: HookedTransformer, beginning: str, request: str | None = SENTENCE_REQUEST
) -> list[int]:
    """Token ids of an answer that begins with ``beginning`` and ends at the answer position; of
    plain text, without a ``request``."""
    if request is None:
        return encode_text(model, beginning.rstrip(" "))
    return encode_prompt(model, request, beginning)


def encode_text(model: HookedTransformer, text: str) -> list[int]:
    """Token ids of plain text, with BOS in front where the model expects it and has one."""
    bos = _tokenizer(model).bos_token_id
    start = [bos] if model.cfg.default_prepend_bos and bos is not None else []
    return start + _encode(model, text, continues=False)


def encode_document(
    model: HookedTransformer, text: str, *, add_bos: bool | None = None
) -> list[int]:
    """Token ids of a text as Hugging Face's tokenizer gives them, which published numbers rest on.

    Unlike :func:`encode_text`, which follows TransformerLens: it puts a BOS in front of everything
    that GPT-2 or SmolLM2 read, where their tokenizers put none.

    Args:
        model: Gives the tokenizer.
        text: May begin with the BOS, as chat templates do; there is then no second one.
        add_bos: Whether a BOS stands in front; None: what the tokenizer does by itself.
    """
    tokenizer = _tokenizer(model)
    ids = _encode(model, text, continues=False)
    if add_bos is None:
        add_bos = prepends_bos(tokenizer)
    if not add_bos or tokenizer.bos_token is None or text.startswith(tokenizer.bos_token):
        return ids
    return [tokenizer.bos_token_id, *ids]


def prepends_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its BOS in front of a text by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("")[:1] == [bos]


def end_of_answer(model: HookedTransformer) -> list[int]:
    """The token that ends an answer, or nothing where the tokenizer has none."""
    eos = _tokenizer(model).eos_token_id
    return [] if eos is None else [eos]


def ends_of_answer(model: HookedTransformer) -> set[int]:
    """Tokens that end an answer: EOS, and the mark that the chat format puts after one."""
    tokenizer, ends = _tokenizer(model), set(end_of_answer(model))
    if _uses_template(model):
        dialogue = _rendered(model, _dialogue("?!"))
        mark = _plain(tokenizer, dialogue.rpartition("!")[2])[:1]
        added = tokenizer.added_tokens_decoder
        ends.update(i for i in mark if i in added and added[i].special)
    return ends


def _uses_template(model: HookedTransformer) -> bool:
    template = getattr(_tokenizer(model), "chat_template", None)
    return bool(template) and text_policy(model).chat


def _rendered(
    model: HookedTransformer, turns: list[dict[str, str]], *, begins: bool = False
) -> str:
    return rendered(model.tokenizer, text_policy(model), turns, begins=begins)


def check_length(model: HookedTransformer, sequences: Iterable[Sequence[int]]) -> None:
    """Refuse what is longer than the model's context.

    Raises:
        ModelError: a sequence has more tokens than the model has positions.
    """
    check_kind(model)
    longest = max(map(len, sequences), default=0)
    if longest > model.cfg.n_ctx:
        raise ModelError(
            f"text must fit into the model's context of {model.cfg.n_ctx} tokens, got {longest}. "
            "Shorten it, or load a model with a longer context."
        )


def _tokenizer(model: HookedTransformer) -> Any:
    check_kind(model)
    if model.tokenizer is None:
        raise ModelError(
            "model must have a tokenizer to read text, got None. "
            "Pass tokenizer=... to load_model beside the Hugging Face model."
        )
    return model.tokenizer
