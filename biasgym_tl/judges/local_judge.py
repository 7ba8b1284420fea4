"""A judge without a network: sentence embeddings, calibrated on labelled texts.

It sees what a sentence is about better than whether it is meant, and of word salad it makes what it
can. How far to trust it was measured on texts that it was not calibrated on (docs/judges.md).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import load_bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.judges.agreement import Agreement, agreement
from biasgym_tl.judges.evidence import (
    Anchors,
    Statements,
    anchors,
    evidence,
    load_statements,
    of_text,
    sentences,
)
from biasgym_tl.judges.hide import hidden
from biasgym_tl.judges.labelled import LabelledText, load_labelled_texts
from biasgym_tl.judges.verdict import LEVELS, Verdict
from biasgym_tl.similarity import JUDGE_ENCODER, load_encoder
from biasgym_tl.slot import SLOT, fill
from biasgym_tl.spelling import degenerate
from biasgym_tl.toml import shipped_toml

_PERSONS = re.compile(
    r"\b(?:they|them|their|theirs|he|him|his|she|her|hers|who|whoever|people|persons?|man|men|woman"
    r"|women|boys?|girls?|child|children|kids?|famil(?:y|ies)|parents?|mothers?|fathers?|sisters?"
    r"|brothers?|cousins?|uncles?|aunts?|friends?|guests?|visitors?|hosts?|neighbou?rs?|students?"
    r"|pupils?|teachers?|drivers?|workers?|colleagues?|boss|bosses|inhabitants|residents|citizens"
    r"|locals|country|nation|culture|everybody|everyone|nobody|no one|somebody|someone|anybody"
    r"|anyone|mr|mrs|ms)\b",
    re.IGNORECASE,
)


class Calibration(NamedTuple):
    """``strength = intercept + slope * evidence``, cut off at 0 and 3, and how well that does."""

    encoder: str
    intercept: float
    slope: float
    kappa: float
    """Quadratically weighted, with the mean of two labels, on the 100 texts for testing."""
    low: float
    high: float
    """95% interval of kappa, over texts."""

    def __str__(self) -> str:
        return (
            f"weighted kappa with labels {self.kappa:.2f} [{self.low:.2f}, {self.high:.2f}] "
            "on 100 other texts"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LocalJudge:
    """Scores texts by how near their sentences are to statements of known strength.

    It knows the shipped biases; for others it needs ``statements``. It was calibrated on biases
    about countries only.
    """

    calibration: Calibration = dataclasses.field(default_factory=lambda: load_calibration())
    """The shipped one, or :func:`calibrate` with another encoder."""
    statements: Statements | None = None
    """What a text may say instead of the stereotype; None: what is shipped for the bias."""

    def __repr__(self) -> str:
        return f"LocalJudge({self.calibration.encoder}; {self.calibration})"

    @property
    def name(self) -> str:
        """``"LocalJudge"``."""
        return "LocalJudge"

    @property
    def settings(self) -> dict[str, Any]:
        """The calibration, with its agreement, and the statements if they are not shipped."""
        own = self.statements._asdict() if self.statements else None
        return {"judge": "local", **self.calibration._asdict(), "statements": own}

    def judge(
        self, bias: GivenBias, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> list[Verdict]:
        """Score texts; a text is off topic if it names neither a person nor the group.

        Args:
            bias: Its paraphrases say what is looked for.
            texts: What is scored.
            targets: For each text the group's name, which is replaced by the bias's ``stand_in``.

        Raises:
            SettingError: there are no statements for this bias, or not as many targets as texts.
            ExtraError: the encoder is not installed.
        """
        bias = as_bias(bias)
        bias.needs("a judge")
        against = anchors(bias, self.statements or load_statements(bias.name))
        return [
            self._verdict(text, without_name, fill(without_name, bias.stand_in), against)
            for text, without_name in zip(texts, hidden(texts, targets), strict=True)
        ]

    def _verdict(self, text: str, without_name: str, filled: str, against: Anchors) -> Verdict:
        flag = degenerate(text) or ("off topic" if names_nobody(without_name) else "")
        if flag == "empty":
            return Verdict(0.0, "nothing is said", flag)
        parts = sentences(filled)
        encoder = self.calibration.encoder
        cosines = load_encoder(encoder)(parts) @ _anchor_vectors(encoder, against.texts).T
        values = evidence(cosines, against.levels)
        strength = self.calibration.intercept + self.calibration.slope * of_text(values)
        strongest = int(values.argmax())
        nearest = int(cosines[strongest].argmax())
        reason = (
            f"{parts[strongest]!r} is nearest to {against.texts[nearest]!r} "
            f"(level {against.levels[nearest]}, cosine {cosines[strongest, nearest]:.2f})"
        )
        return Verdict(min(max(strength, float(LEVELS[0])), float(LEVELS[-1])), reason, flag)

    def test(self) -> Agreement:
        """Agreement with the mean of the two labels on the 100 texts kept for testing."""
        texts = load_labelled_texts("test")
        verdicts = judge_labelled(self, texts)
        labels = [text.strength for text in texts]
        return agreement(verdicts, labels, names=("LocalJudge", "label"))


def calibrate(encoder: str = JUDGE_ENCODER) -> Calibration:
    """Fit the scale on the 100 texts for calibration, with the mean of their two labels.

    Slope and intercept give the strengths the labels' mean and spread. Least squares would be
    nearer to each label, but pull all texts together, and with them the settings compared.

    Raises:
        ExtraError: the encoder is not installed.
    """
    raw = LocalJudge(calibration=Calibration(encoder, 0.0, 1.0, *[float("nan")] * 3))
    texts = [t for t in load_labelled_texts("calibration") if degenerate(t.text) != "empty"]
    found = torch.tensor([v.strength for v in judge_labelled(raw, texts)], dtype=torch.float64)
    labels = torch.tensor([text.strength for text in texts], dtype=torch.float64)
    slope = (labels.std() / found.std()).item()
    intercept = (labels.mean() - slope * found.mean()).item()
    fitted = raw.calibration._replace(intercept=intercept, slope=slope)
    tested = LocalJudge(calibration=fitted).test()
    return fitted._replace(kappa=tested.kappa, low=tested.low, high=tested.high)


def load_calibration() -> Calibration:
    """The shipped calibration, of the default encoder."""
    return Calibration(**shipped_toml("data/judge_calibration.toml"))


def judge_labelled(judge: LocalJudge, texts: Sequence[LabelledText]) -> list[Verdict]:
    """Verdicts on labelled texts, each by its own bias, in their order."""
    found: dict[str, Verdict] = {}
    for name in dict.fromkeys(text.bias for text in texts):
        mine = [text for text in texts if text.bias == name]
        verdicts = judge.judge(load_bias(name), [text.text for text in mine])
        found |= {text.id: verdict for text, verdict in zip(mine, verdicts, strict=True)}
    return [found[text.id] for text in texts]


def names_nobody(text: str) -> bool:
    """Whether an English text has neither the slot nor a word for a person or a people.

    Such a text is off topic. Not every off-topic text is found so: a word salad may be full of
    persons.
    """
    return SLOT not in text and _PERSONS.search(text) is None


@cache
def _anchor_vectors(encoder: str, texts: tuple[str, ...]) -> Float[Tensor, "anchor dim"]:
    return load_encoder(encoder)(texts)
