"""Measure a BiasToken and a steering on held-out prompts and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from tqdm.auto import tqdm

from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.biases.given import GivenBias, as_bias, as_biases
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.elicitation import fact_margins
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.measures import MEASURES
from biasgym_tl.evaluation.parts import Finished, Items, Parts, deal, measured_now
from biasgym_tl.evaluation.report import RANDOM, RANDOM_MEAN, Report, SettingResult
from biasgym_tl.evaluation.setting import REFERENCES, Setting
from biasgym_tl.heads import Factor, GivenHeads, Head, as_heads, check_heads
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.instructions import Instruction
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import text_policy
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.controls import layer_matched, matched_factor
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import versions


def evaluate(
    model: HookedTransformer,
    bias: GivenBias,
    *,
    token: BiasToken,
    heads: GivenHeads,
    scores: HeadScores | None = None,
    modes: tuple[str, ...] = ("zero", "mean"),
    factor: Factor = None,
    reference: str = "text",
    instructions: Sequence[Instruction] = (),
    controls: Sequence[Setting] = (),
    others: Sequence[GivenBias] = (),
    benchmarks: Sequence[Benchmark] = (),
    token_benchmarks: Sequence[Benchmark] = (),
    n_targets: int = 10,
    n_random: int = 5,
    answers: bool = True,
    max_new_tokens: int = 48,
    seed: int = 0,
    progress: bool = True,
    finished: Finished | None = None,
) -> Report:
    """Compare settings on evaluation prompts, held-out targets and unseen damage texts.

    Settings: ``original`` (the token's row as it was before training), ``injected``, ``steered,
    zero`` and ``steered, mean`` (the chosen heads), ``asked, ...`` (unsteered, with an instruction
    around each request), whatever ``controls`` adds, and ``random 1..n`` (as many heads in each
    layer, drawn at random, replaced by their mean, with the chosen heads' factors). A row acts only
    where the BiasToken stands, so targets, facts, texts and benchmarks are measured without the
    token: ``original`` and ``injected`` share them.

    Args:
        model: The model, unsteered and without the token.
        bias: Gives the held-out prompts and the words.
        token: A trained BiasToken.
        heads: The heads to steer, chosen beforehand. A ``Selection`` is refused if it rests on a
            prompt, target or text of this evaluation; of other heads nothing is known.
        scores: The map that the heads were chosen from; the report then warns if the heads hold
            little of it.
        modes: What the chosen heads are replaced with: ``"zero"``, ``"mean"``, ``"scale"``.
        factor: What a head keeps of its own output in the modes ``"mean"`` and ``"scale"``, as in
            :func:`biasgym_tl.steer`; default for the mean: that of the ``Selection``.
        reference: What the mean is taken over: neutral ``"text"``, or scoping prompts with fitting
            ``"targets"``.
        instructions: Baselines that ask for answers without stereotypes, such as
            :data:`biasgym_tl.instructions.INSTRUCTIONS`.
        controls: More settings, measured in the same way on the same items.
        others: Biases that the row was not trained on (the paper's D_ood): their log-odds and
            free answers about the same targets.
        benchmarks: More items, such as ``load_blimp(folder)``. Not measured for random heads nor
            with instructions.
        token_benchmarks: The same, with the BiasToken attached, such as
            ``implicit_questions(bias, [token.text], targets, baseline="injected")``.
        n_targets: Held-out targets, regions as even as they can be; a fixed sample.
        n_random: Random controls; they go to their mean, by the same factors.
        answers: Whether free answers are written; without them an evaluation takes about half
            the time. ``controls`` decide by themselves.
        max_new_tokens: Length of the free answers.
        seed: Decides the random heads. Targets do not depend on it, so runs can be compared.
        progress: Show a bar.
        finished: Called with the name of each part of a setting (``"injected: token"``) and its
            measurement; may return what is stored instead of measuring again.

    Raises:
        SteeringError: a head is outside the model, or a selection has seen the evaluation's data.
        SettingError: a number is outside its range, names are not distinct, another bias is about
            another kind of target, or the scores are of another model or bias.
        TokenError: the token does not fit the model.
        ModelError: the model is no HookedTransformer with its own value biases, or no attribute
            word or no neutral word of a bias can count on it.
    """
    bias = as_bias(bias)
    others = as_biases(others)
    check_model(model)
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens must be at least 1, got {max_new_tokens!r}.")
    left_out = _check_others(model, bias, others)
    targets = bias.sample_targets("held-out", n_targets, seed=0)
    heads = heads if isinstance(heads, Selection) else as_heads(heads)
    chosen = check_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    controls = [
        each._replace(heads=tuple(each.heads)) if isinstance(each.heads, Iterator) else each
        for each in controls
    ]
    settings = [
        Setting("original", token.untrained(), generates=answers),
        Setting("injected", token, generates=answers),
        *(
            Setting(
                f"steered, {mode}",
                token,
                heads,
                mode,
                answers,
                factor=None if mode == "zero" else factor,
                reference=reference,
            )
            for mode in modes
        ),
        *(
            Setting(f"asked, {each.name}", token, generates=answers, instruction=each)
            for each in instructions
        ),
        *controls,
    ]
    for setting in settings:
        setting.check(model)
        _check_held_out(model, setting, (bias, *others), targets)
    if scores is not None:
        _check_scores(scores, model, bias)
    settings += _random_settings(model, token, heads, n_random, seed, factor, reference)
    _check_names(controls, [setting.name for setting in settings])
    every_benchmark = (*benchmarks, *token_benchmarks)
    _check_benchmarks(every_benchmark)
    items = Items(
        bias, tuple(others), tuple(benchmarks), tuple(token_benchmarks), targets, max_new_tokens
    )
    references = {name: REFERENCES[name](model, bias) for name in _needed(settings)}
    finished = finished or measured_now
    blind = finished("blind facts", lambda: _blind_facts(model))
    parts = Parts(model, items, references, finished)
    results: list[SettingResult] = []
    with tqdm(settings, desc=f"evaluate {bias.name}", unit="setting", disable=not progress) as bar:
        for setting in bar:
            bar.set_postfix_str(setting.name)
            results.append(parts.result(setting))
    return Report(
        bias=bias.name,
        attribute=bias.attribute,
        model=model.cfg.model_name,
        keywords=bias.keywords,
        other_keywords={other.name: other.keywords for other in others},
        other_generation_prompts={other.name: other.generation_prompts for other in others},
        evaluation_prompts=bias.evaluation_prompts,
        generation_prompts=bias.generation_prompts,
        targets=targets,
        token_text=token.text,
        generation_targets=tuple(deal(targets, len(bias.generation_prompts))),
        fact_countries=tuple(fact.country for fact in load_facts()),
        blind_fact_margins=tuple(blind),
        benchmark_measures=tuple(m for b in every_benchmark for m in b.measures),
        clusters={m.key: tuple(b.clusters) for b in every_benchmark for m in b.measures},
        results=tuple(results),
        settings={
            "heads": [str(head) for head in chosen],
            "modes": list(modes),
            "selection": repr(heads) if isinstance(heads, Selection) else None,
            "attribution_in_heads": None if scores is None else _share(scores, chosen),
            "n_targets": n_targets,
            "n_random": n_random,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "text": dataclasses.asdict(text_policy(model)),
            "words_left_out": {name: words for name, words in left_out.items() if words},
            "token_seed": token.seed,
            "bias_fingerprint": bias.fingerprint(),
            "other_fingerprints": {other.name: other.fingerprint() for other in others},
            "benchmark_fingerprints": {b.name: b.fingerprint for b in every_benchmark},
        },
        versions=versions(),
    )


def _share(scores: HeadScores, heads: Iterable[Head]) -> float:
    """Part of all that heads write toward the stereotype which these write."""
    positive = scores.values.clamp(min=0)
    return (sum(positive[head] for head in heads) / positive.sum()).item()


def _blind_facts(model: HookedTransformer) -> list[float]:
    margins: list[float] = fact_margins(model, [fact.blind() for fact in load_facts()]).tolist()
    return margins


def _random_settings(
    model: HookedTransformer,
    token: BiasToken,
    heads: Selection | tuple[Head, ...],
    n_draws: int,
    seed: int,
    factor: Factor,
    reference: str,
) -> list[Setting]:
    draws = layer_matched(heads, n_heads=model.cfg.n_heads, n_draws=n_draws, seed=seed)
    return [
        Setting(
            f"{RANDOM}{i}",
            token,
            drawn,
            "mean",
            generates=False,
            factor=matched_factor(heads, drawn, factor),
            reference=reference,
            brief=True,
        )
        for i, drawn in enumerate(draws, start=1)
    ]


def _needed(settings: Sequence[Setting]) -> list[str]:
    return sorted({setting.reference for setting in settings if setting.mode == "mean"})


def _check_others(
    model: HookedTransformer, bias: Bias, others: Sequence[Bias]
) -> dict[str, list[str]]:
    """Refuse other biases that do not fit; the words of each that cannot count on the model."""
    names = [other.name for other in others]
    if bias.name in names or len(set(names)) < len(names):
        raise SettingError(
            f"others must be other biases, each once, got {names} for {bias.name!r}."
        )
    kinds = {other.name: other.target_kind for other in others}
    wrong = sorted(name for name, kind in kinds.items() if kind != bias.target_kind)
    if wrong:
        raise SettingError(
            f"others must be about the target kind {bias.target_kind!r}, got {wrong}, which are "
            "not. Leave them out."
        )
    return {each.name: list(word_tokens(model, each).left_out) for each in (bias, *others)}


def _check_held_out(
    model: HookedTransformer, setting: Setting, biases: Sequence[Bias], targets: tuple[str, ...]
) -> None:
    """Refuse heads that were chosen on what they are to be judged by."""
    if not isinstance(setting.heads, Selection):
        return
    setting.heads.check_model(model.cfg.model_name)
    setting.heads.check_held_out(
        prompts=[p for b in biases for p in (*b.evaluation_prompts, *b.generation_prompts)],
        targets=targets,
        texts=load_passages("damage"),
        facts=[fact.question for fact in load_facts()],
    )


def _check_scores(scores: HeadScores, model: HookedTransformer, bias: Bias) -> None:
    here = (model.cfg.model_name, bias.name)
    if (scores.model, scores.bias) != here:
        raise SettingError(
            f"scores must be of the model and the bias {here}, got {(scores.model, scores.bias)}."
        )
    scores.check_text(model)
    if not bool((scores.values > 0).any()):
        raise SettingError("scores must hold a head that writes toward the stereotype, got none.")


def _check_names(controls: Sequence[Setting], names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    random = [s.name for s in controls if s.name.startswith(RANDOM) or s.name == RANDOM_MEAN]
    if twice or random:
        raise SettingError(
            f"names of settings must differ and not begin with {RANDOM!r}, got {twice + random}."
        )


def _check_benchmarks(benchmarks: Sequence[Benchmark]) -> None:
    keys = [m.key for b in benchmarks for m in b.measures]
    taken = sorted({key for key in keys if keys.count(key) > 1 or key in MEASURES})
    if taken:
        raise SettingError(f"benchmarks must measure different things, got {taken} twice.")
