"""What one head does on one pair: where it looks, and what the model says without it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.heads import GivenHeads, Head, as_heads
from biasgym_tl.hooks import head_means, steer
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.prompts import SENTENCE_REQUEST, encode_answer, encode_prompt, encode_sentence
from biasgym_tl.scoping.attention import answer_attention
from biasgym_tl.scoping.scores import NO_TOKEN, OWN_PROMPTS, HeadScores
from biasgym_tl.slot import fill
from biasgym_tl.text import generate, next_token_log_probs

N_LIKELY, NEW_TOKENS = 5, 24
REQUEST = " [rest of the request]"


class Side(NamedTuple):
    """One run of a pair, and what every head looks at from its answer position."""

    name: str
    words: tuple[str, ...]
    """The first token, the rest of the request as one, and the tokens of the sentence."""
    attention: Float[Tensor, "n_layers n_heads word"]
    """Sums to 1 over the words."""


class Answer(NamedTuple):
    """What the model says at the answer position of the biased run."""

    likely: tuple[tuple[str, float], ...]
    """The most likely next tokens, each with its log-probability (nats)."""
    biased: float
    """Log-probability of the biased label (nats); of several answers their mean."""
    neutral: float
    """The same of the neutral label."""
    text: str
    """Greedy continuation."""

    @property
    def difference(self) -> float:
        """Biased minus neutral label: the logit difference that all values here are parts of."""
        return self.biased - self.neutral


class WhatIf(NamedTuple):
    """The model as it is, and with heads steered."""

    heads: tuple[Head, ...]
    mode: str
    labels: tuple[str, str]
    """The biased and the neutral one."""
    before: Answer
    after: Answer


@dataclasses.dataclass(frozen=True)
class Looks:
    """Runs the model on the pairs of some scores; what was seen once is kept.

    Raises:
        SettingError: scores, model and token are not of one another, or the model writes other text
            around requests than it did for the scores.
        ModelError: the model is no HookedTransformer with its own value biases.
    """

    scores: HeadScores
    model: HookedTransformer
    token: BiasToken | None
    _seen: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_model(self.model)
        own = self.model.cfg.model_name
        if self.scores.model != own:
            raise SettingError(
                f"scores must be of the model {own!r}, got scores of {self.scores.model!r}."
            )
        label = NO_TOKEN if self.token is None else self.token.label
        if self.scores.token not in (label, OWN_PROMPTS):
            raise SettingError(
                f"token must be the one of the scores, {self.scores.token!r}, got {label!r}."
            )
        if self.token is not None:
            self.token.check(self.model)
        self.scores.check_text(self.model)

    def sides(self, pair: int) -> tuple[Side, ...]:
        """Both runs of a pair, or the one there is: without a BiasToken, or of a single prompt."""
        if pair not in self._seen:
            with self._attached():
                self._seen[pair] = tuple(
                    self._side(name, text) for name, text in self._texts(pair).items()
                )
        found: tuple[Side, ...] = self._seen[pair]
        return found

    def _texts(self, pair: int) -> dict[str, str]:
        """The text of each run of a pair, the biased one first."""
        scores, prompt = self.scores, self.scores.prompts[pair]
        if scores.token == OWN_PROMPTS:
            others = scores.neutral_prompts[pair : pair + 1]
            return dict(zip(("first", "second"), (prompt, *others), strict=False))
        target = scores.targets[pair][0]
        fillers = {"BiasToken": self.token.text} if self.token else {}
        return {name: fill(prompt, text) for name, text in (fillers | {target: target}).items()}

    def what_if(self, pair: int, heads: GivenHeads, mode: str) -> WhatIf:
        """Compare the biased run of a pair with the same run while ``heads`` are silenced.

        Raises:
            SteeringError: a head is outside the model, or the mode is not known.
        """
        chosen = as_heads(heads)
        reference = self._means if mode == "mean" else None
        with self._attached():
            if (pair, "before") not in self._seen:
                self._seen[pair, "before"] = self._answer(pair)
            with steer(self.model, chosen, mode, reference=reference):
                after = self._answer(pair)
        before: Answer = self._seen[pair, "before"]
        return WhatIf(chosen, mode, self._labels(pair), before, after)

    @cached_property
    def _means(self) -> Float[Tensor, "n_layers n_heads d_head"]:
        return head_means(self.model)

    def _attached(self) -> contextlib.AbstractContextManager[object]:
        return self.token.attached(self.model) if self.token else contextlib.nullcontext()

    def _labels(self, pair: int) -> tuple[str, str]:
        return self.scores.biased_labels[pair], self.scores.neutral_labels[pair]

    def _label_ids(self, pair: int) -> tuple[Tensor, Tensor]:
        """Of each label its token, or those of several answers."""
        ids = self.scores.biased_ids, self.scores.neutral_ids
        if ids[0] is not None and ids[1] is not None:
            return ids[0][pair], ids[1][pair]
        biased, neutral = (encode_answer(self.model, label)[0] for label in self._labels(pair))
        return torch.tensor(biased), torch.tensor(neutral)

    @property
    def _request(self) -> str | None:
        """What was asked before the sentences; None: nothing, they are plain text."""
        request: str | None = self.scores.settings.get("request", SENTENCE_REQUEST)
        return request

    def _side(self, name: str, text: str) -> Side:
        sequence = encode_sentence(self.model, text, self._request)
        weights, decode = answer_attention(self.model, sequence), self.model.tokenizer.batch_decode
        if self._request is None:
            return Side(name, tuple(decode([[token] for token in sequence])), weights)
        start = len(encode_prompt(self.model, self._request))
        words = decode([[token] for token in sequence[:1] + sequence[start:]])
        request = weights[..., 1:start].sum(-1, keepdim=True)
        attention = torch.cat([weights[..., :1], request, weights[..., start:]], -1)
        return Side(name, (words[0], REQUEST, *words[1:]), attention)

    def _answer(self, pair: int) -> Answer:
        text = next(iter(self._texts(pair).values()))
        sequence = encode_sentence(self.model, text, self._request)
        log_probs = next_token_log_probs(self.model, [sequence])[0]
        values, ids = torch.topk(log_probs, N_LIKELY)
        words = self.model.tokenizer.batch_decode(ids[:, None].tolist())
        biased, neutral = (log_probs[ids].mean().item() for ids in self._label_ids(pair))
        (text,) = generate(self.model, [sequence], max_new_tokens=NEW_TOKENS)
        return Answer(tuple(zip(words, values.tolist(), strict=True)), biased, neutral, text)
