"""How much of its own output each head may keep, learned by gradient descent."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.added_row import added_row
from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.biases.facts import FACT_REQUEST, load_facts
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.panel import SPARED
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError, check_at_least, check_literals
from biasgym_tl.gate import Gate
from biasgym_tl.heads import GivenHeads, Head, all_heads, check_heads
from biasgym_tl.hooks import head_means
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.injection.train import frozen
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.notebook import described
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_prompt, encode_text
from biasgym_tl.scoping.scores import marked, top_heads
from biasgym_tl.steering.reference import off_target_sentences, scoping_sentences
from biasgym_tl.steering.selection import Selection, searched
from biasgym_tl.text import kl, log_odds, next_token_log_probs

TEXT_TOKENS = 48
"""Budget texts are cut here."""
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
        bias: GivenBias,
        *tokens: BiasToken,
        among: GivenHeads | None = None,
        progress: bool = True,
    ) -> Selection:
        """Learn the factors.

        Args:
            model: The model, unsteered and without a token.
            bias: Gives scoping prompts, words and fitting targets.
            tokens: BiasTokens: rows of other seeds make the heads those of the bias rather than of
                one row. None: a stereotype that the model holds by itself.
            among: Only these heads may be silenced, such as the highest of a map
                (``scores.top(20)``); default: all.
            progress: Show a bar.

        Returns:
            Heads whose factor is below 1, the most silenced first, with ``factors``.

        Raises:
            SettingError: a BiasToken is to be served, and none is given.
            BiasFileError: the bias lacks a panel that the goal or the off-target term needs.
            SteeringError: one of ``among`` is outside the model.
            TokenError: a token does not fit the model.
        """
        check_model(model)
        bias = as_bias(bias)
        bias.needs("scoping")
        if self.aim == "nobody":
            bias.check_has("a goal where nobody stands", "panel")
        if not tokens and self.serves == "token":
            raise SettingError("tokens must be one or more BiasTokens, got none.")
        size = model.cfg.n_layers, model.cfg.n_heads
        may = check_heads(all_heads(*size) if among is None else among, *size)
        after = named_targets(bias) if self.at == "targets" else ()
        with _attached(model, tokens) as names, frozen(model):
            learner = _Learner(model, bias, names, self, (*after, *names) if after else ())
            factors, path = learner.learned(may, progress)
        ranked = top_heads(-factors, factors.numel())
        heads = tuple(head for head in ranked if factors[head] < 1)
        return searched(
            self,
            model,
            bias,
            {"path": path, "among": None if among is None else list(map(str, may))},
            heads=heads,
            factors=tuple(factors[head].item() for head in heads),
            method="learned factors",
            token="; ".join(token.label for token in tokens) or "no injection",
            k=self.k or len(ranked),
            mode="mean",
            after=after,
        )


@contextlib.contextmanager
def _attached(model: HookedTransformer, tokens: Sequence[BiasToken]) -> Iterator[list[str]]:
    """All tokens at once, each under a name of its own."""
    names = [f"<|row-{i}|>" for i in range(len(tokens))]
    for token in tokens:
        token.check(model)
    with contextlib.ExitStack() as stack:
        for name, token in zip(names, tokens, strict=True):
            stack.enter_context(added_row(model, token.row, name))
        yield names


class _Learner:
    """What the objective is computed from."""

    def __init__(
        self,
        model: HookedTransformer,
        bias: Bias,
        tokens: Sequence[str],
        options: FactorSearch,
        after: Sequence[str] = (),
    ) -> None:
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

    def learned(
        self, among: Sequence[Head], progress: bool
    ) -> tuple[Float[Tensor, "n_layers n_heads"], list[list[float]]]:
        """Factors of some heads (1 elsewhere); excess, KL and change off target at each step."""
        options, cfg = self.options, self.model.cfg
        factors = torch.ones(cfg.n_layers, cfg.n_heads, device=cfg.device, requires_grad=True)
        free = marked(among, cfg.n_layers, cfg.n_heads).to(cfg.device)
        adam = torch.optim.Adam([factors], lr=options.lr, betas=(0.8, 0.95))
        path = []
        for step in tqdm(range(options.n_steps), desc="factors", disable=not progress):
            adam.param_groups[0]["lr"] = options.lr * min(1, 2 * (1 - step / options.n_steps))
            if step == options.n_steps // 2:
                free &= _lowest(factors.detach(), options.k)
            excess, kl, moved = self.objective(factors)
            total = excess + options.keep * kl + options.off_target * moved
            total = total + options.sparsity * (1 - factors).sum()
            (factors.grad,) = torch.autograd.grad(total, factors)
            adam.step()
            with torch.no_grad():
                factors.clamp_(0, 1)[~free] = 1
            path.append([excess.item(), kl.item(), moved.item()])
        found = factors.detach().clone()
        found[~(_lowest(found, options.k) & (found < 1 - NEGLIGIBLE))] = 1
        return found.cpu(), path

    def objective(
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
        with torch.enable_grad(), _scaled(self.model, factors, self.reference, self.after):
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


def _lowest(factors: Float[Tensor, "n_layers n_heads"], k: int | None) -> Tensor:
    """True at the ``k`` smallest, or everywhere."""
    marked = torch.zeros(factors.numel(), dtype=torch.bool, device=factors.device)
    marked[factors.flatten().argsort()[:k]] = True
    return marked.view_as(factors)


@contextlib.contextmanager
def _scaled(
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
        return torch.where(gate()[:, :, None, None], scaled, z) if gate else scaled

    layers = range(model.cfg.n_layers)
    names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    watching = gate.watching(layers) if gate else contextlib.nullcontext()
    with watching, model.hooks(fwd_hooks=[(name, scale) for name in names]):
        yield
