"""A steered model in other harnesses, so that any of their tasks runs.

EleutherAI's lm-evaluation-harness, and inspect of the UK's AI Security Institute:

with steer(model, heads):
    lm_eval.simple_evaluate(lm_eval_model(model), tasks=["arc_easy"])
    inspect_ai.eval(inspect_task("late"), model=inspect_model(model))
"""

from __future__ import annotations

from importlib import util
from typing import Any

from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import ExtraError, SettingError
from biasgym_tl.evaluation.standard import target_answers
from biasgym_tl.judges.verdict import Judge
from biasgym_tl.lens import HookedTransformer, check_kind

BATCH_SIZE = 8
"""Texts run at once: with long shots, more would need gigabytes for the attention."""


def lm_eval_model(
    model: HookedTransformer, *, batch_size: int = BATCH_SIZE, add_bos: bool | None = None
) -> Any:
    """Wrap a model as an ``lm_eval.api.model.LM``, to be passed to ``lm_eval.simple_evaluate``.

    It runs the model as it is at the time, so a steering or a BiasToken must be active while tasks
    run. Texts are cut into tokens, and chat templates written, as by lm-eval's own class for
    Hugging Face models (``HFLM``), so an unsteered model gets the same numbers; the ``TextPolicy``
    of the model is not used. The beginning that all requests of a task share, such as the same
    shots, is run once.

    Args:
        model: The model.
        batch_size: Texts run at once.
        add_bos: Whether a BOS stands in front of every text. None, as in lm-eval: what the
            tokenizer's own files say. (The rest of this package follows TransformerLens, which puts
            one before what GPT-2 or SmolLM2 read as well; that is True here.)

    Raises:
        ExtraError: lm-eval is not installed.
        SettingError: ``batch_size`` is less than 1. Later, from a task: its requests ask for
            sampling, are longer than the model's context, or are to be cached.
    """
    check_kind(model)
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, got {batch_size!r}.")
    _needs("lm_eval", "lm_eval_model", "harness")
    from biasgym_tl.evaluation.hooked_lm import HookedLM

    return HookedLM(model, batch_size, add_bos)


def inspect_model(model: HookedTransformer) -> Any:
    """Wrap a model as an ``inspect_ai.model.Model``, to be passed to ``inspect_ai.eval``.

    It answers with the package's own text policy and runs the model as it is at the time, so a
    steering must be active while the eval runs; greedy where a task sets no temperature, up to 256
    tokens where it sets no length. Tools and images are refused.

    Raises:
        ExtraError: inspect-ai is not installed.
    """
    check_kind(model)
    _needs("inspect_ai", "inspect_model", "inspect")
    from biasgym_tl.evaluation.inspected import hooked_model

    return hooked_model(model)


def inspect_task(
    bias: GivenBias,
    *,
    n_targets: int = 10,
    judge: Judge | None = None,
    max_new_tokens: int = 48,
) -> Any:
    """The free answers about held-out targets as a task of inspect, for any of its models.

    Scores are ``keywords`` (1 where an answer holds one) and with a judge ``strength`` (0 to 3, of
    sound answers; others have no score). Both are to fall.

    Args:
        bias: Whose requests are asked.
        n_targets: Held-out targets.
        judge: Such as ``LocalJudge()``.
        max_new_tokens: Length of the answers.

    Raises:
        ExtraError: inspect-ai is not installed.
        SettingError: a number is outside its range.
        BiasFileError: the bias lacks what is asked.
    """
    _needs("inspect_ai", "inspect_task", "inspect")
    from biasgym_tl.evaluation.inspected import bias_task

    bias = as_bias(bias)
    targets = bias.sample_targets("held-out", n_targets, seed=0)
    asked = target_answers(bias, targets, max_new_tokens=max_new_tokens).asked["target_texts"]
    return bias_task(bias, asked, judge, max_new_tokens)


def _needs(module: str, call: str, extra: str) -> None:
    if util.find_spec(module) is None:
        raise ExtraError(
            f"{call} needs the package {module.replace('_', '-')}, which is not installed. "
            f"Run: pip install 'biasgym-tl[{extra}]'"
        )
