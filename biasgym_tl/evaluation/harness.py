"""A steered model in EleutherAI's lm-evaluation-harness, so that any of its tasks runs.

with steer(model, heads):
    lm_eval.simple_evaluate(lm_eval_model(model), tasks=["arc_easy"])
"""

from __future__ import annotations

from importlib import util
from typing import Any

from biasgym_tl.errors import ExtraError, SettingError
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
    if util.find_spec("lm_eval") is None:
        raise ExtraError(
            "lm_eval_model needs the package lm-eval, which is not installed. "
            "Run: pip install 'biasgym-tl[harness]'"
        )
    from biasgym_tl.evaluation.hooked_lm import HookedLM

    return HookedLM(model, batch_size, add_bos)
