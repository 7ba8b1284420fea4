"""A chosen set of heads against many random sets, on a fixed part of the evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.chance import rank_p
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.parts import Finished, measured_now
from biasgym_tl.evaluation.setting import REFERENCES, Setting
from biasgym_tl.heads import Factor, GivenHeads, Head, check_heads
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.stats import Interval, crossed_interval
from biasgym_tl.steering.controls import layer_matched, matched_factor
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import Result, versions


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RandomControl(Result):
    """Log-odds (nats) unsteered, with the chosen heads, and with random sets."""

    unsteered: Float[Tensor, " prompt"]
    chosen: Float[Tensor, " prompt"]
    draws: Float[Tensor, "draw prompt"]
    heads: tuple[str, ...]
    mode: str
    on: str = "token"
    """Whose log-odds: the BiasToken's (``"token"``), or the mean over held-out ``"targets"``."""
    bias: str
    model: str
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def drops(self) -> Float[Tensor, " draw"]:
        """Fall of the mean log-odds in each random set (nats)."""
        return (self.unsteered - self.draws).mean(1)

    @property
    def drop(self) -> float:
        """The same in the chosen set."""
        return (self.unsteered - self.chosen).mean().item()

    def difference(self) -> Interval:
        """Chosen minus random drop (nats), over prompts and draws."""
        return crossed_interval((self.draws - self.chosen).T)

    def p(self) -> float:
        """Chance of so high a rank if the chosen set were one more random set."""
        return rank_p(self.drop, self.drops)

    def __repr__(self) -> str:
        n = len(self.draws)
        return (
            f"RandomControl({self.bias}, {self.on}, {self.mode}, {len(self.heads)} heads: drop "
            f"{self.drop:+.2f} nats; {n} random sets {self.drops.mean():+.2f} "
            f"({self.drops.min():+.2f} to {self.drops.max():+.2f}); difference "
            f"{self.difference()}; rank p = {self.p():.3f})"
        )


def random_control(
    model: HookedTransformer,
    bias: GivenBias,
    *,
    token: BiasToken,
    heads: GivenHeads,
    mode: str | None = None,
    factor: Factor = None,
    reference: str = "text",
    on: str = "token",
    n_targets: int = 10,
    n_draws: int = 199,
    seed: int = 0,
    progress: bool = True,
    finished: Finished | None = None,
) -> RandomControl:
    """Compare a chosen set with ``n_draws`` random sets that have as many heads in each layer.

    Measured on all evaluation prompts. 199 draws allow p-values down to 0.005. With the same seed,
    the first draws are the random controls of :func:`evaluate`.

    Args:
        model: The model, unsteered and without the token.
        bias: Gives the evaluation prompts and the words.
        token: A trained BiasToken.
        heads: The chosen heads; a ``Selection`` is refused if it has seen this data.
        mode: What chosen and random heads are replaced with; default: as the ``Selection`` says,
            otherwise ``"mean"``.
        factor: What they keep of their own output, in the modes ``"mean"`` and ``"scale"``; default
            for the mean: as the ``Selection`` says. Factors by head go to random heads by layer.
        reference: What the mean is taken over: ``"text"`` or ``"targets"``, as in ``evaluate``.
        on: Whose log-odds: those of the BiasToken (``"token"``) or of held-out ``"targets"``.
        n_targets: Held-out targets, the first of those of :func:`evaluate`.
        n_draws: Random sets.
        seed: Decides the draws.
        progress: Show a bar.
        finished: Called with each measurement's name; may return a stored one.

    Raises:
        SteeringError: a head is outside the model, or a selection has seen the evaluation's data.
        SettingError: a number is outside its range.
        TokenError: the token does not fit the model.
    """
    check_model(model)
    bias = as_bias(bias)
    selection = heads if isinstance(heads, Selection) else None
    chosen = check_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    mode = mode or (selection.mode if selection else "mean")
    if on not in ("token", "targets"):
        raise SettingError(f"on must be 'token' or 'targets', got {on!r}.")
    if n_draws < 1:
        raise SettingError(f"n_draws must be at least 1, got {n_draws!r}.")
    if selection is not None:
        selection.check_model(model.cfg.model_name)
        targets = bias.targets("held-out")
        selection.check_held_out(prompts=bias.evaluation_prompts, targets=targets)
    Setting("chosen heads", token, chosen, mode, factor=factor, reference=reference).check(model)
    drawn = layer_matched(chosen, n_heads=model.cfg.n_heads, n_draws=n_draws, seed=seed)
    references = {reference: REFERENCES[reference](model, bias)} if mode == "mean" else {}
    names = (token.text,) if on == "token" else bias.sample_targets("held-out", n_targets, 0)
    finished, kept = finished or measured_now, mode != "zero"
    found: list[Float[Tensor, " prompt"]] = []
    with (
        token.attached(model),
        tqdm([(), chosen, *drawn], desc=f"random sets, {bias.name}", disable=not progress) as bar,
    ):
        for i, steered in enumerate(bar):

            def measure(steered: tuple[Head, ...] = steered) -> list[float]:
                setting = Setting(
                    "random set",
                    token,
                    steered,
                    mode if steered else None,
                    factor=matched_factor(heads, steered, factor) if kept and steered else None,
                    reference=reference,
                )
                with setting.steered(model, references):
                    measured = bias_log_odds(model, bias, bias.evaluation_prompts, names)
                values: list[float] = measured.log_odds.mean(1).tolist()
                return values

            found.append(torch.tensor(finished(f"{on} {mode} set {i}", measure)))
    return RandomControl(
        unsteered=found[0],
        chosen=found[1],
        draws=torch.stack(found[2:]),
        heads=tuple(map(str, chosen)),
        mode=mode,
        on=on,
        bias=bias.name,
        model=model.cfg.model_name,
        settings={
            "n_draws": n_draws,
            "n_targets": n_targets if on == "targets" else None,
            "seed": seed,
            "token": token.label,
            "reference": reference if mode == "mean" else "",
            "factor": factor if isinstance(factor, float) else None,
            "bias_fingerprint": bias.fingerprint(),
        },
        versions=versions(),
    )
