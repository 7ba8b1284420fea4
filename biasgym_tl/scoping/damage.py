"""What else a head is good for: loss on neutral text and country facts without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.facts import FACT_REQUEST, Fact, load_facts
from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.hooks import MODES, head_means
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_answer, encode_prompt
from biasgym_tl.scoping.ablation import ablated_deltas, ablated_losses
from biasgym_tl.scoping.scores import head_table, top_heads
from biasgym_tl.slot import spaced
from biasgym_tl.store import TensorResult, versions
from biasgym_tl.text import answer_differences, mean_loss, next_token_log_probs


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class HeadDamage(TensorResult):
    """Cost of silencing each head alone; positive is damage."""

    loss: Float[Tensor, "text n_layers n_heads"]
    """Rise of the mean loss of each neutral text (nats per token)."""
    facts: Float[Tensor, "fact n_layers n_heads"]
    """Fall of the logit difference of each fact, right answer against the wrong one that is
    likeliest in the whole model (first tokens, before a final soft cap)."""
    mode: str
    model: str
    countries: tuple[str, ...]
    """Country of each fact."""
    versions: dict[str, str]

    def to_df(self) -> pd.DataFrame:
        """One row per head: mean rise of the loss, mean fall of the facts' log-odds."""
        return head_table(loss=self.loss.mean(0), facts=self.facts.mean(0))

    def __repr__(self) -> str:
        loss, facts = self.loss.mean(0), self.facts.mean(0)
        of_loss, of_facts = top_heads(loss, 1)[0], top_heads(facts, 1)[0]
        return (
            f"HeadDamage({self.mode} on {self.model}: loss worst without {of_loss} "
            f"({loss.max():+.3f} nats per token), facts without {of_facts} "
            f"({facts.max():+.2f} nats))"
        )


def head_damage(
    model: HookedTransformer,
    *,
    mode: str = "mean",
    texts: Sequence[str] | None = None,
    facts: Sequence[Fact] | None = None,
    progress: bool = False,
) -> HeadDamage:
    """Silence every head in turn and measure what is lost.

    Args:
        model: The model, without the BiasToken.
        mode: What the head is replaced with: ``"zero"`` or ``"mean"``.
        texts: Neutral texts; default: ``load_passages("budget")``, which no report is made on.
        facts: Default: ``load_facts("budget")``, which no report is made on. Facts whose right and
            wrong answers begin alike are left out.
        progress: Show bars over layers.

    Raises:
        SettingError: there is no such mode, or no fact or text is left.
    """
    check_model(model)
    check_one_of("mode", mode, MODES)
    texts = list(load_passages("budget") if texts is None else texts)
    asked, right, wrong = _first_tokens(model, load_facts("budget") if facts is None else facts)
    if not texts or not asked:
        raise SettingError(
            f"texts and facts must not be empty, got {len(texts)} and {len(asked)} usable ones. "
            "Pass more."
        )
    prompts = [encode_prompt(model, FACT_REQUEST, fact.question) for fact in asked]
    log_probs = next_token_log_probs(model, prompts)
    likeliest = [
        max(ids, key=row.__getitem__) for ids, row in zip(wrong, log_probs.tolist(), strict=True)
    ]
    ids = [torch.tensor(found, device=log_probs.device) for found in (right, likeliest)]
    reference = head_means(model) if mode == "mean" else None
    options: dict[str, Any] = {"reference": reference, "progress": progress}
    facts_left = ablated_deltas(model, prompts, *ids, **options)
    loss = mean_loss(model, texts).double().cpu()
    return HeadDamage(
        loss=ablated_losses(model, texts, **options) - loss[:, None, None],
        facts=answer_differences(model, prompts, *ids)[:, None, None] - facts_left,
        mode=mode,
        model=model.cfg.model_name,
        countries=tuple(fact.country for fact in asked),
        versions=versions(),
    )


def _first_tokens(
    model: HookedTransformer, facts: Sequence[Fact]
) -> tuple[list[Fact], list[int], list[list[int]]]:
    """Facts whose right answer has a first token of its own, with first tokens right and wrong."""
    asked, right, wrong = [], [], []
    for fact in facts:
        first, *others = (encode_answer(model, spaced(answer))[0] for answer in fact.candidates)
        if first not in others:
            asked.append(fact)
            right.append(first)
            wrong.append(others)
    return asked, right, wrong
