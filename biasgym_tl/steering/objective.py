"""What a search of factors minimises: log-odds over a goal, damage, and change off target."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.biases.facts import FACT_REQUEST, load_facts
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.gate import Gate
from biasgym_tl.hooks import head_means
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_prompt, encode_text
from biasgym_tl.steering.reference import off_target_sentences, scoping_sentences
from biasgym_tl.text import kl, log_odds, next_token_log_probs

if TYPE_CHECKING:
    from biasgym_tl.steering.factors import FactorSearch

TEXT_TOKENS = 48
"""Budget texts are cut here."""


class Objective:
    """The objective of a :class:`FactorSearch` for one bias, on batches that it draws."""

    def __init__(
        self,
        model: HookedTransformer,
        bias: Bias,
        tokens: Sequence[str],
        options: FactorSearch,
        after: Sequence[str] = (),
    ) -> None:
        """Measure the unsteered model.

        Args:
            model: Unsteered, its weights frozen.
            bias: What is searched for.
            tokens: How its BiasTokens are written in a prompt; they are attached.
            options: The search.
            after: Names after which alone heads are changed; none: everywhere.
        """
        self.model, self.options, self.after = model, options, after
        self.reference = head_means(model)
        self.ids = word_tokens(model, bias).single()
        self.random = random.Random(options.seed)
        targets = bias.sample_targets("fitting", 10, options.seed)
        tokens = tokens if options.serves != "targets" else ()
        named = targets if options.serves != "token" else ()
        self.biased, self.natural = (scoping_sentences(model, bias, n) for n in (tokens, named))
        cells = off_target_sentences(model, bias, targets)
        texts = _budget_texts(model, targets if after else ())
        facts = [encode_prompt(model, FACT_REQUEST, f.question) for f in load_facts("budget")]
        with torch.no_grad():
            self.panel = {
                name: list(zip(sentences, self._log_odds(sentences), strict=True))
                for name, sentences in cells.items()
                if options.off_target or options.aim == "nobody"
            }
            self.texts = [(text, log_probs(model, [text])) for text in texts]
            self.facts = list(zip(facts, next_token_log_probs(model, facts), strict=True))
            if options.aim == "nobody":
                self.goal = torch.stack([odds for _, odds in self.panel["nobody"]]).mean().item()
            else:
                natural = self.natural or scoping_sentences(model, bias, targets)
                self.goal = self._log_odds(natural).mean().item() - options.below
        if after:  # what names nobody cannot change
            self.panel = {k: v for k, v in self.panel.items() if k == "rightful_target"}

    def _log_odds(self, sentences: Sequence[Sequence[int]]) -> Float[Tensor, " sentence"]:
        return log_odds(next_token_log_probs(self.model, sentences), *self.ids)

    def __call__(
        self, factors: Float[Tensor, "n_layers n_heads"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """On a drawn batch: excess of the log-odds over the goal (mean over sentences with
        BiasTokens, and over those with targets; the two count alike), KL per token, and the mean
        size of the change of log-odds off target."""
        options = self.options
        third = options.n_sentences // 3 if self.natural else options.n_sentences
        biased = self._drawn(self.biased, third)
        natural = self._drawn(self.natural, options.n_sentences - (third if biased else 0))
        each = options.n_off_target // max(len(self.panel), 1)
        panel = [pair for cell in self.panel.values() for pair in self._drawn(cell, each)]
        texts, before = zip(*self._drawn(self.texts, options.n_texts), strict=True)
        facts, known = zip(*self._drawn(self.facts, options.n_facts), strict=True)
        asked = [*biased, *natural, *(sentence for sentence, _ in panel)]
        with torch.enable_grad(), scaled(self.model, factors, self.reference, self.after):
            odds = log_odds(log_probs(self.model, asked, last=True), *self.ids)
            steered = [log_probs(self.model, texts), log_probs(self.model, facts, last=True)]
        parts = torch.split(odds, [len(biased), len(natural), len(panel)])
        over = [(part - self.goal).clamp(min=0).mean() for part in parts[:2] if len(part)]
        plain = [torch.cat(before), torch.stack(known)]
        damage = torch.stack([kl(p, q) for p, q in zip(plain, steered, strict=True)]).mean()
        unsteered = torch.stack([odds for _, odds in panel]) if panel else parts[2]
        moved = (parts[2] - unsteered).abs().sum() / max(len(panel), 1)
        return torch.stack(over).mean(), damage, moved

    def _drawn(self, pool: list[Any], n: int) -> list[Any]:
        return self.random.sample(pool, min(n, len(pool)))


def named_targets(bias: Bias) -> tuple[str, ...]:
    """Names of all targets of a bias: after these it can be steered. Of countries, all that the
    package knows, so that facts about others bound the damage."""
    own = (*bias.targets("fitting"), *bias.targets("held-out"))
    countries = bias.target_kind == "country"
    return (*own, *(c.name for c in load_countries("other") if countries))


def _budget_texts(model: HookedTransformer, names: Sequence[str]) -> list[list[int]]:
    """Budget texts; each after a name, where there are names."""
    texts = load_passages("budget")
    if names:
        texts = tuple(f"{names[i % len(names)]}: {text}" for i, text in enumerate(texts))
    return [encode_text(model, text)[:TEXT_TOKENS] for text in texts]


@contextlib.contextmanager
def scaled(
    model: HookedTransformer,
    factors: Float[Tensor, "n_layers n_heads"],
    reference: Float[Tensor, "n_layers n_heads d_head"],
    after: Sequence[str] = (),
) -> Iterator[None]:
    """Steering through which a gradient reaches the factors."""
    gate = Gate(model, after) if after else None

    def scale(z: Float[Tensor, "batch pos n_heads d_head"], hook: Any) -> Tensor:
        mean = reference[hook.layer()].to(z)
        scaled = mean + factors[hook.layer(), :, None].to(z) * (z - mean)
        return torch.where(gate(z), scaled, z) if gate else scaled

    layers = range(model.cfg.n_layers)
    names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    watching = gate.watching(layers) if gate else contextlib.nullcontext()
    with watching, model.hooks(fwd_hooks=[(name, scale) for name in names]):
        yield
