"""Measure a BiasToken and a steering on held-out prompts and targets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import fact_margins, load_facts
from biasgym_tl.biases.words import word_ids
from biasgym_tl.elicitation import answer_freely, bias_log_odds
from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.evaluation.report import RANDOM, RANDOM_MEAN, Report, SettingResult
from biasgym_tl.heads import Head, check_heads
from biasgym_tl.hooks import MODES, head_means, steer
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.steering.controls import layer_matched
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import versions
from biasgym_tl.text import mean_loss

Finished = Callable[[str, Callable[[], Any]], Any]
"""Looks up a finished measurement by name, or runs and keeps it."""


class Setting(NamedTuple):
    """One way to run the model: which row the token has, and what is steered."""

    name: str
    token: BiasToken
    heads: Selection | tuple[tuple[int, int], ...] = ()
    """A ``Selection`` is checked not to rest on what is evaluated on."""
    mode: str | None = None
    """``"zero"`` or ``"mean"``; None without heads."""
    generates: bool = True
    """Whether free answers are written."""


def evaluate(
    model: HookedTransformer,
    bias: Bias,
    *,
    token: BiasToken,
    heads: Iterable[tuple[int, int]],
    modes: tuple[str, ...] = MODES,
    controls: Sequence[Setting] = (),
    n_targets: int = 10,
    n_random: int = 5,
    max_new_tokens: int = 48,
    seed: int = 0,
    progress: bool = True,
    finished: Finished | None = None,
) -> Report:
    """Compare settings on evaluation prompts, held-out targets and unseen damage texts.

    Settings: ``original`` (the token's row as it was before training), ``injected``, ``steered,
    zero`` and ``steered, mean`` (the chosen heads), whatever ``controls`` adds, and ``random 1..n``
    (as many heads in each layer, drawn at random, replaced by their mean).

    Args:
        model: The model, unsteered and without the token.
        bias: Gives the held-out prompts and the words.
        token: A trained BiasToken.
        heads: The heads to steer, chosen beforehand. A ``Selection`` is refused if it rests on a
            prompt, target or text of this evaluation; of other heads nothing is known.
        modes: What the chosen heads are replaced with.
        controls: More settings, measured in the same way on the same items.
        n_targets: Held-out targets, regions as even as they can be; a fixed sample.
        n_random: Random controls; they are mean-ablated.
        max_new_tokens: Length of the free answers.
        seed: Decides the random heads. Targets do not depend on it, so runs can be compared.
        progress: Show a bar.
        finished: Called with each measurement's name and the measurement; may return a stored
            result instead of measuring again.

    Raises:
        SteeringError: a head is outside the model, or a selection has seen the evaluation's data.
        SettingError: a number is outside its range.
        TokenError: the token does not fit the model.
    """
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens must be at least 1, got {max_new_tokens!r}.")
    word_ids(model, bias)
    targets = bias.sample_targets("held-out", n_targets, seed=0)
    heads = heads if isinstance(heads, Selection) else tuple(heads)
    chosen = check_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    settings = [
        Setting("original", token.untrained()),
        Setting("injected", token),
        *(Setting(f"steered, {mode}", token, heads, mode) for mode in modes),
        *controls,
        *_random_settings(model, token, chosen, n_random, seed),
    ]
    for setting in settings:
        _check_setting(model, bias, setting, targets)
    _check_names(controls, [setting.name for setting in settings])
    reference = head_means(model)
    finished = finished or measured_now
    blind = finished("blind facts", lambda: _blind_facts(model))
    results = []
    with tqdm(settings, desc=f"evaluate {bias.name}", unit="setting", disable=not progress) as bar:
        for setting in bar:
            bar.set_postfix_str(setting.name)

            def measure(setting: Setting = setting) -> SettingResult:
                return _measure(model, bias, setting, targets, reference, max_new_tokens)

            results.append(finished(setting.name, measure))
    return Report(
        bias=bias.name,
        attribute=bias.attribute,
        model=model.cfg.model_name,
        keywords=bias.keywords,
        evaluation_prompts=bias.evaluation_prompts,
        generation_prompts=bias.generation_prompts,
        targets=targets,
        generation_targets=tuple(_dealt(targets, len(bias.generation_prompts))),
        fact_countries=tuple(fact.country for fact in load_facts()),
        blind_fact_margins=tuple(blind),
        results=tuple(results),
        settings={
            "heads": [str(head) for head in chosen],
            "modes": list(modes),
            "mean_reference": "load_passages('reference')",
            "selection": repr(heads) if isinstance(heads, Selection) else None,
            "n_targets": n_targets,
            "n_random": n_random,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "token_seed": token.seed,
            "bias_fingerprint": bias.fingerprint(),
        },
        versions=versions(),
    )


def measured_now(name: str, measure: Callable[[], Any]) -> Any:
    """The ``Finished`` that keeps nothing."""
    return measure()


def _blind_facts(model: HookedTransformer) -> list[float]:
    margins: list[float] = fact_margins(model, [fact.blind() for fact in load_facts()]).tolist()
    return margins


def _random_settings(
    model: HookedTransformer, token: BiasToken, heads: tuple[Head, ...], n_draws: int, seed: int
) -> list[Setting]:
    draws = layer_matched(heads, n_heads=model.cfg.n_heads, n_draws=n_draws, seed=seed)
    return [
        Setting(f"{RANDOM}{i}", token, drawn, "mean", generates=False)
        for i, drawn in enumerate(draws, start=1)
    ]


def _check_setting(
    model: HookedTransformer, bias: Bias, setting: Setting, targets: tuple[str, ...]
) -> None:
    """Find out before the first measurement what could not be measured or should not be."""
    setting.token.check(model)
    heads = check_heads(setting.heads, model.cfg.n_layers, model.cfg.n_heads)
    if setting.mode not in ((*MODES,) if heads else (None,)):
        raise SteeringError(
            f"mode of the setting {setting.name!r} must be one of {list(MODES)} with heads and "
            f"None without, got {setting.mode!r} with {len(heads)} heads."
        )
    if isinstance(setting.heads, Selection):
        setting.heads.check_model(model.cfg.model_name)
        setting.heads.check_held_out(
            prompts=(*bias.evaluation_prompts, *bias.generation_prompts),
            targets=targets,
            texts=load_passages("damage"),
            facts=[fact.question for fact in load_facts()],
        )


def _check_names(controls: Sequence[Setting], names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    random = [s.name for s in controls if s.name.startswith(RANDOM) or s.name == RANDOM_MEAN]
    if twice or random:
        raise SettingError(
            f"names of settings must differ and not begin with {RANDOM!r}, got {twice + random}."
        )


def _measure(
    model: HookedTransformer,
    bias: Bias,
    setting: Setting,
    targets: tuple[str, ...],
    reference: Float[Tensor, "n_layers n_heads d_head"],
    max_new_tokens: int,
) -> SettingResult:
    texts: list[str] = []
    prompts = bias.generation_prompts
    with setting.token.attached(model), _steered(model, setting, reference):
        # Column 0 is the BiasToken, the others are the targets.
        names = (setting.token.text, *targets)
        measured = bias_log_odds(model, bias, bias.evaluation_prompts, names)
        damage = mean_loss(model, load_passages("damage"))
        margins = fact_margins(model, load_facts())
        if setting.generates:
            slots = [setting.token.text] * len(prompts) + _dealt(targets, len(prompts))
            texts = answer_freely(model, prompts * 2, slots, max_new_tokens=max_new_tokens)
    return SettingResult(
        name=setting.name,
        heads=tuple(str(Head(*head)) for head in setting.heads),
        mode=setting.mode,
        token=setting.token.label,
        token_log_odds=measured.log_odds[:, 0].tolist(),
        token_log_p=measured.log_p[:, 0].tolist(),
        target_log_odds=measured.log_odds[:, 1:].tolist(),
        target_log_p=measured.log_p[:, 1:].tolist(),
        damage_loss=damage.tolist(),
        fact_margins=margins.tolist(),
        token_texts=texts[: len(prompts)],
        target_texts=texts[len(prompts) :],
    )


def _dealt(targets: tuple[str, ...], n: int) -> list[str]:
    """A target for each of ``n`` prompts, in turn."""
    return [targets[i % len(targets)] for i in range(n)]


@contextlib.contextmanager
def _steered(
    model: HookedTransformer,
    setting: Setting,
    reference: Float[Tensor, "n_layers n_heads d_head"],
) -> Iterator[None]:
    if setting.mode is None:
        yield
        return
    used = reference if setting.mode == "mean" else None
    with steer(model, setting.heads, setting.mode, reference=used):
        yield
