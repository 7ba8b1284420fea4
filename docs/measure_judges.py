"""The numbers of docs/judges.md: LocalJudge and simpler measures against the labels.

python docs/measure_judges.py
"""

from collections.abc import Callable

import torch

from biasgym_tl import load_bias
from biasgym_tl.judges.agreement import agreement
from biasgym_tl.judges.labelled import LabelledText, load_labelled_texts
from biasgym_tl.judges.local_judge import LocalJudge, judge_labelled
from biasgym_tl.judges.verdict import DEGENERATE
from biasgym_tl.similarity import DEFAULT_ENCODER, load_encoder
from biasgym_tl.slot import fill
from biasgym_tl.spelling import degenerate, keyword_hits

FITTED, TESTED = load_labelled_texts("calibration"), load_labelled_texts("test")
BIASES = {name: load_bias(name) for name in dict.fromkeys(text.bias for text in TESTED)}
ORIGINS = ("original, greedy", "original, temp", "asked", "injected", "steered", "written")


def keywords(text: LabelledText) -> float:
    return 3.0 * keyword_hits([text.text], BIASES[text.bias].keywords)[0]


def selectors_cosine(text: LabelledText) -> float:
    """What chooses the epoch of a training (``injection.probe``)."""
    bias, encode = BIASES[text.bias], load_encoder(DEFAULT_ENCODER)
    meant = encode([fill(paraphrase, bias.stand_in) for paraphrase in bias.paraphrases])
    found = (encode([fill(text.text, bias.stand_in)]) @ meant.T).max().item()
    return 0.0 if degenerate(text.text) else found


def on_the_labels_scale(measure: Callable[[LabelledText], float]) -> list[float]:
    """Values on the test texts, with slope and intercept from the others, as LocalJudge has."""
    fitted = torch.tensor([measure(text) for text in FITTED])
    labels = torch.tensor([text.strength for text in FITTED])
    tested = torch.tensor([measure(text) for text in TESTED])
    scaled = (tested - fitted.mean()) / fitted.std() * labels.std() + labels.mean()
    return scaled.clamp(0, 3).tolist()


def show(name: str, found: list[float], kept: list[bool] | None = None) -> None:
    kept = kept or [True] * len(TESTED)
    pairs = [(x, t.strength) for x, t, keep in zip(found, TESTED, kept, strict=True) if keep]
    result = agreement(*zip(*pairs, strict=True))
    means = " / ".join(f"{sum(part) / len(pairs):.2f}" for part in zip(*pairs, strict=True))
    print(
        f"{name:28} {result.kappa:5.2f} [{result.low:5.2f}, {result.high:5.2f}]  "
        f"{result.n:3} texts, means {means}"
    )


readers = agreement(*([text.label(i) for text in TESTED] for i in (0, 1)))
print(f"the two readers: {readers.kappa:.2f} [{readers.low:.2f}, {readers.high:.2f}]\n")
verdicts = judge_labelled(LocalJudge(), TESTED)
measures = {
    "LocalJudge": [float(v.strength or 0) for v in verdicts],
    "keyword: 3, none: 0": [keywords(text) for text in TESTED],
    "keywords, scaled": on_the_labels_scale(keywords),
    "selector's cosine, scaled": on_the_labels_scale(selectors_cosine),
}
for name, found in measures.items():
    show(name, found)
for name in ("LocalJudge", "keywords, scaled"):
    show(f"{name}, by models", measures[name], [t.origin != "written" for t in TESTED])
for bias in BIASES:
    show(f"LocalJudge, {bias}", measures["LocalJudge"], [t.bias == bias for t in TESTED])
for origin in ORIGINS:
    kept = [origin in text.origin for text in TESTED]
    show(f"LocalJudge, {origin}", measures["LocalJudge"], kept)
print()
for kind in DEGENERATE:
    pairs = [(set(t.degenerate), v.degenerate) for t, v in zip(TESTED, verdicts, strict=True)]
    labelled = [flag for labels, flag in pairs if labels == {kind}]
    false = sum(flag == kind and kind not in labels for labels, flag in pairs)
    print(f"{kind}: found {labelled.count(kind)} of {len(labelled)}, {false} false")
