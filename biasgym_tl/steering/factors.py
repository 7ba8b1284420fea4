"""How much of its own output each head may keep, learned by gradient descent."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.added_row import added_row
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_biases
from biasgym_tl.biases.panel import SPARED
from biasgym_tl.errors import SettingError, check_at_least, check_literals
from biasgym_tl.heads import GivenHeads, Head, all_heads, check_heads
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.injection.train import frozen
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.notebook import described
from biasgym_tl.scoping.scores import marked, top_heads
from biasgym_tl.steering.objective import Objective, named_targets
from biasgym_tl.steering.selection import Selection, searched

NEGLIGIBLE = 0.02
"""A head that keeps more than all but this is left alone."""


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorSearch:
    """Learn a factor for each head: ``z := factor * z + (1 - factor) * mean``.

    Minimises, over factors between 0 and 1 that start at 1 (Adam, weights frozen),

        mean of max(0, log-odds - goal) + off_target * mean of |change of log-odds off target|
        + keep * KL + sparsity * sum of (1 - factor)

    The log-odds are those of words of one token, for BiasTokens and for fitting targets on
    scoping prompts; off target they are those of the panel's fitting half: things, nobody, and
    uses that are rightful, also of targets. KL is from the unsteered to the steered model, per
    token of budget texts and at the answers of budget facts. Factors that gain nothing
    return to 1. From half of the steps on, only the ``k`` smallest remain free and steps get
    smaller.
    """

    k: int | None = None
    """Heads at most; None: any number."""
    serves: Literal["token", "targets", "both"] = "both"
    """Whose log-odds are to fall: the BiasTokens' (``"token"``), those of ``"targets"``, or both,
    which count alike. Without a BiasToken: those of targets."""
    aim: Literal["below", "nobody"] = "below"
    """The goal of the log-odds: ``below`` the unsteered targets', or where nobody in particular
    stands, so that the gap of a stereotype is closed and no more."""
    below: float = 1.5
    """How far under the unsteered targets' log-odds the goal lies (nats)."""
    off_target: float = 2.0
    """Nats of log-odds that a nat of change off target is worth; 0, or a bias without a panel:
    nothing is kept there but by ``keep``."""
    at: Literal["everywhere", "targets"] = "everywhere"
    """Where heads are changed: at every position, or only from the name of a target on, which
    leaves other sentences as they are."""
    keep: float = 15.0
    """Nats of log-odds that a nat of KL per token is worth."""
    sparsity: float = 0.005
    """Nats that silencing a head must be worth."""
    n_steps: int = 40
    """Steps of Adam."""
    lr: float = 0.08
    """Step of a factor; falls to 0 over the second half."""
    n_sentences: int = 12
    """Scoping sentences in each step: a third with a BiasToken."""
    n_off_target: int = 12
    """Sentences of the panel in each step."""
    n_texts: int = 2
    """Budget texts in each step."""
    n_facts: int = 6
    """Budget facts in each step."""
    seed: int = 0
    """Decides the draws."""

    def __post_init__(self) -> None:
        check_literals(self)
        check_at_least(
            1, k=self.k, n_steps=self.n_steps, n_texts=self.n_texts, n_facts=self.n_facts
        )
        check_at_least(3, n_sentences=self.n_sentences)
        check_at_least(len(SPARED), n_off_target=self.n_off_target)
        check_at_least(0, keep=self.keep, sparsity=self.sparsity, off_target=self.off_target)
        if not self.lr > 0:
            raise SettingError(f"lr must be positive, got {self.lr!r}.")

    def select(
        self,
        model: HookedTransformer,
        bias: GivenBias | Sequence[GivenBias],
        *tokens: BiasToken,
        among: GivenHeads | None = None,
        progress: bool = True,
    ) -> Selection:
        """Learn the factors.

        Args:
            model: The model, unsteered and without a token.
            bias: Gives scoping prompts, words and fitting targets. Several: factors for all of
                them, each step on a batch of one of them in turn.
            tokens: BiasTokens: rows of other seeds make the heads those of the bias rather than of
                one row. None: a stereotype that the model holds by itself. Of several biases each
                is served by its own.
            among: Only these heads may be silenced, such as the highest of a map
                (``scores.top(20)``); default: all.
            progress: Show a bar.

        Returns:
            Heads whose factor is below 1, the most silenced first, with ``factors``.

        Raises:
            SettingError: a BiasToken is to be served, and none is given; a token is of none of
                several biases; or there is no bias.
            BiasFileError: a bias lacks a panel that the goal or the off-target term needs.
            SteeringError: one of ``among`` is outside the model.
            TokenError: a token does not fit the model.
        """
        check_model(model)
        biases = as_biases([bias] if isinstance(bias, GivenBias) else bias)
        check_at_least(1, **{"number of biases": len(biases)})
        check_at_least(len(biases), n_steps=self.n_steps)
        served = self._served(biases, tokens)
        size = model.cfg.n_layers, model.cfg.n_heads
        may = check_heads(all_heads(*size) if among is None else among, *size)
        after = tuple(t for each in biases for t in named_targets(each) if self.at == "targets")
        with attached_together(model, tokens) as texts, frozen(model):
            objectives = [
                Objective(model, each, [texts[i] for i in served[each.name]], self, after)
                for each in biases
            ]
            factors, path = self._learned(objectives, may, progress)
        ranked = top_heads(-factors, factors.numel())
        heads = tuple(head for head in ranked if factors[head] < 1)
        return searched(
            self,
            model,
            biases,
            {"path": path, "among": None if among is None else list(map(str, may))},
            heads=heads,
            factors=tuple(factors[head].item() for head in heads),
            method="learned factors",
            token="; ".join(token.label for token in tokens) or "no injection",
            k=self.k or len(ranked),
            mode="mean",
            after=tuple(dict.fromkeys(after)),
        )

    def _served(self, biases: Sequence[Bias], tokens: Sequence[BiasToken]) -> dict[str, list[int]]:
        """Places of the tokens of each bias, all of which have what the search needs."""
        served = {
            each.name: [i for i, t in enumerate(tokens) if len(biases) == 1 or t.bias == each.name]
            for each in biases
        }
        used = {i for places in served.values() for i in places}
        if foreign := [token.label for i, token in enumerate(tokens) if i not in used]:
            raise SettingError(
                f"tokens must each be of one of the biases {list(served)}, got {foreign}."
            )
        for each in biases:
            each.needs("scoping")
            if self.aim == "nobody":
                each.check_has("a goal where nobody stands", "panel")
            if self.serves == "token" and not served[each.name]:
                raise SettingError("tokens must be one or more BiasTokens, got none.")
        return served

    def _learned(
        self, objectives: Sequence[Objective], among: Sequence[Head], progress: bool
    ) -> tuple[Float[Tensor, "n_layers n_heads"], list[list[float]]]:
        """Factors of some heads (1 elsewhere); excess, KL and change off target at each step."""
        cfg = objectives[0].model.cfg
        factors = torch.ones(cfg.n_layers, cfg.n_heads, device=cfg.device, requires_grad=True)
        free = marked(among, cfg.n_layers, cfg.n_heads).to(cfg.device)
        adam = torch.optim.Adam([factors], lr=self.lr, betas=(0.8, 0.95))
        path = []
        for step in tqdm(range(self.n_steps), desc="factors", disable=not progress):
            adam.param_groups[0]["lr"] = self.lr * min(1, 2 * (1 - step / self.n_steps))
            if step == self.n_steps // 2:
                free &= _lowest(factors.detach(), self.k)
            excess, kl, moved = objectives[step % len(objectives)](factors)
            total = excess + self.keep * kl + self.off_target * moved
            total = total + self.sparsity * (1 - factors).sum()
            (factors.grad,) = torch.autograd.grad(total, factors)
            adam.step()
            with torch.no_grad():
                factors.clamp_(0, 1)[~free] = 1
            path.append([excess.item(), kl.item(), moved.item()])
        found = factors.detach().clone()
        found[~(_lowest(found, self.k) & (found < 1 - NEGLIGIBLE))] = 1
        return found.cpu(), path


@contextlib.contextmanager
def attached_together(model: HookedTransformer, tokens: Sequence[BiasToken]) -> Iterator[list[str]]:
    """All tokens at once, each under a name of its own."""
    names = [f"<|row-{i}|>" for i in range(len(tokens))]
    for token in tokens:
        token.check(model)
    with contextlib.ExitStack() as stack:
        for name, token in zip(names, tokens, strict=True):
            stack.enter_context(added_row(model, token.row, name))
        yield names


def _lowest(factors: Float[Tensor, "n_layers n_heads"], k: int | None) -> Tensor:
    """True at the ``k`` smallest, or everywhere."""
    marked = torch.zeros(factors.numel(), dtype=torch.bool, device=factors.device)
    marked[factors.flatten().argsort()[:k]] = True
    return marked.view_as(factors)
