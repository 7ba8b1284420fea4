"""Conditions of a protocol beside the unsteered ones, and the rivals that they may name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biasgym_tl.allowed import MEANS
from biasgym_tl.errors import SettingError, check_at_least, check_one_of
from biasgym_tl.evaluation.condition import BRIEF
from biasgym_tl.files import read_text
from biasgym_tl.hooks import check_steering
from biasgym_tl.instructions import find_instruction
from biasgym_tl.protocol.parts import Choice, check_file_name
from biasgym_tl.rivals.methods import check_settings
from biasgym_tl.store import digest

LOG_ODDS = ("token log-odds", "target log-odds")
OWN_ANSWERS = (*BRIEF, "token answers", "target answers")
MEASURES: dict[str, tuple[str, ...] | None] = {
    "all": None,
    "brief": BRIEF,
    "log-odds": LOG_ODDS,
    "off target": (*BRIEF, "off-target log-odds", "KL"),
    "own answers": OWN_ANSWERS,
    "answers": ("token answers", "target answers", "other answers"),
}
"""By name, which measurements are made in a condition; None: all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rival:
    """An intervention that is made for each bias, before anything is measured."""

    method: str = ""
    """One of :data:`biasgym_tl.rivals.methods.METHODS`."""
    natural: bool = True
    """Made also for a bias without rows, which the model is to hold by itself."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the method."""

    def check(self, name: str) -> None:
        """Refuse what could not be made."""
        check_file_name(name)
        check_settings(self.method, self.settings)
        self.files()

    def files(self) -> dict[str, str]:
        """By path, the fingerprint of each file among the settings.

        Raises:
            SettingError: a file is missing.
        """
        paths = [Path(v) for v in self.settings.values() if str(v).endswith(".json")]
        return {str(path): digest(read_text(path, "file", SettingError)) for path in paths}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """A condition beside ``original`` and ``injected``."""

    choice: str = ""
    """Name of a choice of heads; empty: nothing is steered."""
    mode: str = "mean"
    """``"zero"``, ``"mean"`` or ``"scale"``."""
    rival: str = ""
    """Name of a rival in the place of a choice, with one of:"""
    kl: float | None = None
    """Its damage: KL on budget text that its dial is set to (nats per token)."""
    strength: float | None = None
    """Its dial."""
    name: str = ""
    """Default: ``"CHOICE, MODE"``, ``"RIVAL, KL"``, or ``"asked, INSTRUCTION"``."""
    factor: float | None = None
    """What heads keep, in the modes ``"mean"`` and ``"scale"``; default: what the choice says."""
    mean_over: str = "text"
    """One of ``MEANS``."""
    asked: str = ""
    """Name of an instruction around each request."""
    reinject: bool = False
    """With a new row, trained while the heads are steered; beside one of the same training on the
    model as it is (``"NAME: unsteered"``), which changes are counted from, and both after their
    last epoch (``"NAME, last epoch"``)."""
    all_seeds: bool = False
    """Also with the rows of the other seeds, as ``"NAME, seed 1"``, on the BiasToken alone."""
    random: int = 0
    """Random sets of its own mode and factors, measured in brief."""
    random_answers: int = 0
    """So many of the random sets also answer freely, for this bias."""
    draws: int = 0
    """Random sets of which only log-odds are measured, ``random`` included; 199 give p-values."""
    measures: str = "all"
    """One of ``MEASURES``: ``"brief"`` leaves out free answers, other biases and benchmarks, ``"own
    answers"`` adds the free answers for this bias to it, ``"answers"`` is free answers alone,
    ``"log-odds"`` those of the BiasToken and of targets, ``"off target"`` adds to ``"brief"`` what
    the panel asks."""

    @property
    def label(self) -> str:
        """The name of the condition."""
        steered = f"{self.choice}, {self.mode}"
        if self.rival:
            dial = f"KL {self.kl:g}" if self.kl is not None else f"strength {self.strength}"
            return self.name or f"{self.rival}, {dial}"
        return self.name or (steered if self.choice else f"asked, {self.asked}")

    @property
    def _dials(self) -> dict[str, float]:
        """Those that are given."""
        dials = {"kl": self.kl, "strength": self.strength}
        return {name: value for name, value in dials.items() if value is not None}

    def check(self, choices: Mapping[str, Choice], rivals: Mapping[str, Rival]) -> None:
        """Refuse what could not be measured."""
        if self.rival:
            self._check_rival(rivals)
        elif self._dials:
            raise SettingError(
                f"{next(iter(self._dials))} of the condition {self.label!r} must be left out "
                "without a rival."
            )
        elif self.choice:
            check_one_of("choice of a condition", self.choice, choices)
            check_steering(self.mode, self.factor)
        elif not self.asked:
            raise SettingError(
                "a condition must name a choice of heads, a rival or what is asked, got none."
            )
        elif self.random or self.draws or self.reinject:
            raise SettingError(f"condition {self.label!r} must steer heads to have random ones.")
        if self.asked:
            find_instruction(self.asked)
        check_one_of("mean_over of a condition", self.mean_over, MEANS)
        check_one_of("measures of a condition", self.measures, MEASURES)
        if self.factor is not None and not math.isfinite(self.factor):
            raise SettingError(
                f"factor of the condition {self.label!r} must be a number, got {self.factor!r}."
            )
        for name in ("random", "random_answers", "draws"):
            check_at_least(0, **{f"{name} of the condition {self.label!r}": getattr(self, name)})
        if self.random_answers > self.random:
            raise SettingError(
                f"random_answers of the condition {self.label!r} must be among its {self.random} "
                f"random sets, got {self.random_answers}."
            )

    def _check_rival(self, rivals: Mapping[str, Rival]) -> None:
        check_one_of("rival of a condition", self.rival, rivals)
        of_heads = ("choice", "reinject", "mode", "factor", "mean_over")
        if foreign := [n for n in of_heads if getattr(self, n) != getattr(Steering, n)]:
            raise SettingError(
                f"{foreign[0]} of a condition must be left out beside a rival, got "
                f"{getattr(self, foreign[0])!r}."
            )
        given = self._dials
        if len(given) != 1 or not all(0 < value < math.inf for value in given.values()):
            raise SettingError(
                f"a condition with the rival {self.rival!r} must have a kl or a strength above 0, "
                f"got {given or 'none'}. 0.03 is a kl to begin with."
            )
