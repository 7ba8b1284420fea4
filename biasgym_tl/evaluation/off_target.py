"""The log-odds of a bias off target, and in words that no search saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import BiasFileError
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.evaluation.measurement import SENTENCE, Items, Measurement
from biasgym_tl.lens import HookedTransformer

RIGHTFUL = ("rightful", "rightful_target")
CHANCE = 0.5
"""Share of rightful prompts that are right where they are like those about nobody, about."""
MEASURES = (
    Measure("nobody_log_odds", "nobody log-odds", "nats"),
    Measure("things_log_odds", "things log-odds", "nats"),
    Measure("rightful_log_odds", "rightful uses log-odds", "nats"),
    Measure("rightful_target_log_odds", "rightful uses of targets log-odds", "nats"),
    Measure("groups_log_odds", "other groups log-odds", "nats"),
    Measure("held_out_words_log_odds", "targets log-odds of held-out words", "nats"),
    Measure("rightful_right", "rightful uses right", "share of prompts", kind="share",
            floor=CHANCE, of=("rightful_margins",), read="right"),
    Measure("rightful_target_right", "rightful uses of targets right", "share of prompts",
            kind="share", floor=CHANCE, of=("rightful_target_margins",), read="right"),
)  # fmt: skip


def off_target_log_odds(bias: GivenBias, targets: Sequence[str]) -> Measurement:
    """Log-odds (nats) on the held-out half of the bias's panel, by prompt and filler.

    Rightful uses also with the first targets in the slot. A rightful prompt is right where its
    log-odds, in the mean over its fillers, are above the mean of those about nobody in the same
    condition: whether the model still tells where the attribute is true. Not above 0, which says
    more of the lists than of the model: a neutral word such as "on" is likely nearly everywhere.
    A fall of the word alone leaves this share as it is, and shows in the log-odds of rightful uses.
    The held-out words are measured on evaluation prompts with targets.

    Raises:
        BiasFileError: the bias lacks a panel or evaluation prompts, or has words of its panel.
    """
    bias = as_bias(bias)
    bias.check_has("measures off target", "panel", "evaluation_prompts")
    panel = bias.panel
    assert panel
    if seen := panel.seen((*bias.attribute_words, *bias.neutral_words)):
        raise BiasFileError(
            f"words of the panel of bias {bias.name!r} must not be among its own, got {seen}. Give "
            "it other words, or measure without it: dataclasses.replace(bias, panel=None)."
        )
    asked = {name: (bias, *cell) for name, cell in panel.half("held-out", targets).items()}
    words = {key: getattr(panel, key) for key in ("attribute_words", "neutral_words")}
    unseen = dataclasses.replace(bias, panel=None, **words)
    asked["held_out_words"] = (unseen, bias.evaluation_prompts, tuple(targets))

    def run(model: HookedTransformer, condition: Condition) -> Items:
        found = {
            name: bias_log_odds(model, *each, instruction=condition.instruction).log_odds
            for name, each in asked.items()
        }
        nobody = found["nobody"].mean()
        margins = {f"{name}_margins": (found[name].mean(1) - nobody).tolist() for name in RIGHTFUL}
        return {f"{name}_log_odds": values.tolist() for name, values in found.items()} | margins

    n = sum(len(prompts) * len(fillers) for _, prompts, fillers in asked.values())
    return Measurement(
        name="off-target log-odds",
        needs="request",
        run=run,
        measures=MEASURES,
        fingerprint=[bias.fingerprint(), dataclasses.asdict(panel), list(targets)],
        cost=SENTENCE * n,
        held_out={
            "prompts": [prompt for _, prompts, _ in asked.values() for prompt in prompts],
            "targets": targets,
        },
        biases=(bias,),
        columns={f"{name}_log_odds": fillers for name, (_, _, fillers) in asked.items()},
        same_inputs=True,
    )
