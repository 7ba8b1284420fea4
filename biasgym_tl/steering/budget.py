"""The heads that lower a bias most while what else the model can do stays within a bound."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.elicitation import bias_log_odds, fact_margins
from biasgym_tl.errors import SettingError, check_at_least, check_literals
from biasgym_tl.heads import Head
from biasgym_tl.hooks import check_mode, head_means, steer
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.notebook import described
from biasgym_tl.passages import load_passages
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.steering.factors import attached_together
from biasgym_tl.steering.reference import off_target_sentences
from biasgym_tl.steering.selection import Selection, searched
from biasgym_tl.text import log_odds, mean_loss, next_token_log_probs

MOST_PROPOSALS = 40


class Step(NamedTuple):
    """One head of the search, with what all heads up to it do together."""

    head: Head
    drop: float
    """Fall of the log-odds (nats)."""
    loss: float
    """Rise of the loss on budget texts (nats per token)."""
    facts: float
    """Fall of the share of right facts."""
    off_target: float
    """Mean size of the change of log-odds off target (nats)."""


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetSearch:
    """Greedy choice of heads: the largest jointly measured drop within a bound on damage.

    In each round, attribution patching on the model *as steered so far* proposes heads; each of
    the best is added and the log-odds are measured; the one with the largest drop whose damage
    stays within the bounds is kept. The search ends when none is left, or at ``k`` heads.

    Everything is measured on scoping prompts, fitting targets, the panel's fitting half, budget
    texts and facts about countries that are no target; the :class:`Selection` knows them.
    """

    k: int = 20
    """Heads at most."""
    max_loss: float = 0.03
    """Largest rise of the mean loss on budget texts (nats per token)."""
    max_facts: float = 0.02
    """Largest fall of the share of facts that are right."""
    max_off_target: float | None = 0.3
    """Largest mean size of the change of log-odds on the panel's fitting half: things, nobody,
    rightful uses (nats). None, or a bias without a panel: any."""
    serves: Literal["token", "targets", "both"] = "both"
    """Whose mean log-odds are to fall: the BiasTokens' (``"token"``), those of ``"targets"``, or
    both alike (``"both"``). Without a BiasToken: those of targets."""
    mode: Literal["zero", "mean"] = "mean"
    """What heads are replaced with."""
    width: int = 3
    """Proposals that are measured in each round."""
    rounds_per_map: int = 4
    """Heads after which heads are proposed anew."""
    n_prompts: int = 12
    """Scoping prompts that drops are measured on."""
    n_targets: int = 4
    """Fitting targets."""
    n_off_target: int = 12
    """Sentences of each cell of the panel."""
    seed: int = 0
    """Decides the targets."""

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_literals(self)
        whole = ("k", "width", "rounds_per_map", "n_prompts", "n_targets", "n_off_target")
        check_at_least(1, **{name: getattr(self, name) for name in whole})
        bounds = ("max_loss", "max_facts", "max_off_target")
        given = {name: getattr(self, name) for name in bounds}
        check_at_least(0, **{name: bound for name, bound in given.items() if bound is not None})

    def select(
        self,
        model: HookedTransformer,
        bias: GivenBias,
        *tokens: BiasToken,
        progress: bool = True,
    ) -> Selection:
        """Choose heads.

        Args:
            model: A model in fp32, unsteered and without the token.
            bias: Gives scoping prompts, words and fitting targets.
            tokens: BiasTokens; of several, such as those of other seeds, log-odds and maps are
                averaged. None: a stereotype that the model holds by itself.
            progress: Show a bar.

        Returns:
            Heads in the order in which they were added; possibly none.

        Raises:
            SettingError: a BiasToken is to be served, and none is given.
            AttributionError: the model is not supported.
            TokenError: a token does not fit the model.
        """
        check_model(model)
        bias = as_bias(bias)
        bias.needs("scoping")
        if not tokens and self.serves == "token":
            raise SettingError(
                "tokens must be one or more BiasTokens where they are served, got none."
            )
        search = _Search(model, bias, tokens, self)
        path: list[Step] = []
        with tqdm(total=self.k, desc=f"heads for {bias.name}", disable=not progress) as bar:
            while len(path) < self.k:
                if len(path) % self.rounds_per_map == 0:
                    proposals = search.proposals([step.head for step in path])
                step = search.step(path, proposals)
                if step is None:
                    break
                path.append(step)
                bar.update()
                bar.set_postfix(drop=f"{step.drop:.2f}", loss=f"{step.loss:+.3f}")
        return searched(
            self,
            model,
            [bias],
            {"path": [list(step[1:]) for step in path]},
            heads=tuple(step.head for step in path),
            method="damage budget",
            token="; ".join(token.label for token in tokens) or "no injection",
            k=self.k,
            mode=self.mode,
        )


class _Search:
    """What the search measures while heads are steered, and the values without any."""

    def __init__(
        self,
        model: HookedTransformer,
        bias: Bias,
        tokens: Sequence[BiasToken],
        options: BudgetSearch,
    ) -> None:
        self.model, self.bias, self.tokens, self.options = model, bias, tokens, options
        self.reference = head_means(model) if options.mode == "mean" else None
        self.prompts = bias.scoping_prompts[: options.n_prompts]
        self.targets = bias.sample_targets("fitting", options.n_targets, options.seed)
        self.facts, self.words = load_facts("budget"), word_tokens(model, bias).single()
        self.spared = self._spared()
        self.plain_spared = self.off_target([]) if self.spared else torch.empty(0)
        self.plain_odds = self.log_odds([])
        self.plain_loss, self.plain_right = self.loss([]), self.right([])

    def _spared(self) -> list[list[int]]:
        """Sentences of the panel that are to stay as they are."""
        if self.options.max_off_target is None:
            return []
        found = off_target_sentences(self.model, self.bias, self.targets)
        drawn = random.Random(self.options.seed)
        n = self.options.n_off_target
        return [s for cell in found.values() for s in drawn.sample(cell, min(n, len(cell)))]

    def proposals(self, heads: Sequence[Head]) -> list[Head]:
        """The first heads, highest first, by what they still add when ``heads`` are silent."""
        options = self.options
        scope = BiasScope(method="attribution_patching", ablate_to=options.mode, seed=options.seed)
        served: list[Sequence[BiasToken | None]] = []
        served += [self.tokens] if self.tokens and options.serves != "targets" else []
        served += [[None]] if options.serves != "token" else []
        with self._steered(heads):
            maps = [
                torch.stack(
                    [scope.attribute(self.model, self.bias, row).values for row in rows]
                ).mean(0)
                for rows in served
            ]
        total = torch.stack(maps).mean(0)
        ranked = top_heads(total, int((total > 0).sum()))
        return [head for head in ranked if head not in heads][:MOST_PROPOSALS]

    def step(self, path: Sequence[Step], proposals: list[Head]) -> Step | None:
        """The next head; what does not help or costs too much leaves ``proposals``."""
        options, chosen = self.options, [step.head for step in path]
        so_far = path[-1].drop if path else 0.0
        while proposals:
            tried, proposals[:] = proposals[: options.width], proposals[options.width :]
            drops = {head: self.drop([*chosen, head]) for head in tried}
            for head in sorted(tried, key=lambda head: -drops[head]):
                if drops[head] <= so_far:
                    break
                loss = self.loss([*chosen, head]) - self.plain_loss
                if loss > options.max_loss:
                    continue
                off_target = self.off_target_change([*chosen, head])
                if off_target > (options.max_off_target or 0) and self.spared:
                    continue
                facts = self.plain_right - self.right([*chosen, head])
                if facts <= options.max_facts:
                    proposals[:0] = [other for other in tried if drops[other] < drops[head]]
                    return Step(head, drops[head], loss, facts, off_target)
        return None

    def drop(self, heads: Sequence[Head]) -> float:
        """Fall of the log-odds that are to be served (nats)."""
        falls = (self.plain_odds - self.log_odds(heads)).mean(0)
        own, others = falls[: len(self.tokens)], falls[len(self.tokens) :]
        targets = others.mean().item()
        if not self.tokens:
            return targets
        token = own.mean().item()
        by_served = {"token": token, "targets": targets, "both": (token + targets) / 2}
        return by_served[self.options.serves]

    def log_odds(self, heads: Sequence[Head]) -> Float[Tensor, "prompt slot"]:
        """Of each BiasToken, then of the targets (nats)."""
        with attached_together(self.model, self.tokens) as own, self._steered(heads):
            found = bias_log_odds(self.model, self.bias, self.prompts, (*own, *self.targets))
        return found.log_odds

    def off_target_change(self, heads: Sequence[Head]) -> float:
        """Mean size of the change of log-odds of what is to stay as it is (nats)."""
        if not self.spared:
            return 0.0
        return (self.off_target(heads) - self.plain_spared).abs().mean().item()

    def off_target(self, heads: Sequence[Head]) -> Float[Tensor, " sentence"]:
        """Log-odds of what is to stay as it is (nats)."""
        with self._steered(heads):
            return log_odds(next_token_log_probs(self.model, self.spared), *self.words)

    def loss(self, heads: Sequence[Head]) -> float:
        """Mean over budget texts (nats per token)."""
        with self._steered(heads):
            return mean_loss(self.model, load_passages("budget")).mean().item()

    def right(self, heads: Sequence[Head]) -> float:
        """Share of the budget facts that are right."""
        with self._steered(heads):
            return (fact_margins(self.model, self.facts) > 0).double().mean().item()

    def _steered(self, heads: Sequence[Head]) -> AbstractContextManager[None]:
        return steer(self.model, heads, self.options.mode, reference=self.reference)
