"""What a setting shows, part by part; settings that share a part have it measured once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.elicitation import answer_freely, bias_log_odds, fact_margins
from biasgym_tl.evaluation.report import SettingResult
from biasgym_tl.evaluation.setting import References, Setting
from biasgym_tl.instructions import NOTHING
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.text import mean_loss

Finished = Callable[[str, Callable[[], Any]], Any]
"""Looks up a finished measurement by name, or runs and keeps it."""


def measured_now(name: str, measure: Callable[[], Any]) -> Any:
    """The ``Finished`` that keeps nothing."""
    return measure()


class Items(NamedTuple):
    """What every setting is measured on."""

    bias: Bias
    others: tuple[Bias, ...]
    benchmarks: tuple[Benchmark, ...]
    token_benchmarks: tuple[Benchmark, ...]
    targets: tuple[str, ...]
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Parts:
    """Measures settings part by part.

    What the BiasToken does depends on all of a setting; requests and answers without it on all but
    the row; plain text on the steering alone.
    """

    model: HookedTransformer
    items: Items
    references: References
    """By name, what means are taken over."""
    finished: Finished = measured_now
    known: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def result(self, setting: Setting) -> SettingResult:
        """All parts of a setting, put together."""
        own = self.items.bias.name
        token = self._part("token", setting, setting.name, self._token)
        requests = self._part("requests", setting, setting.requests_key, self._requests)
        said: list[str] = []
        answers: dict[str, list[str]] = {}
        if setting.generates:
            said = self._part("token answers", setting, setting.name, self._token_answers)
            answers = self._part("answers", setting, setting.requests_key, self._answers)
        text = self._part("text", setting, setting.steering_key, self._text)
        plain = setting.instruction == NOTHING  # benchmarks are asked without other words

        def others(values: Mapping[str, Any]) -> dict[str, Any]:
            return {o.name: values[o.name] for o in self.items.others if o.name in values}

        return SettingResult(
            **setting.record(),
            token_log_odds=token["token_log_odds"],
            token_log_p=token["token_log_p"],
            token_texts=said,
            target_log_odds=requests["log_odds"][own],
            target_log_p=requests["log_p"][own],
            other_log_odds=others(requests["log_odds"]),
            fact_margins=requests["fact_margins"],
            target_texts=answers.get(own, []),
            other_texts=others(answers),
            damage_loss=text["damage_loss"],
            benchmarks={**text["benchmarks"], **token["benchmarks"]} if plain else {},
        )

    def _part(
        self, part: str, setting: Setting, key: Hashable, measure: Callable[[Setting], Any]
    ) -> Any:
        def run() -> Any:
            with setting.steered(self.model, self.references):
                return measure(setting)

        if (part, key) not in self.known:
            self.known[part, key] = self.finished(f"{setting.name}: {part}", run)
        return self.known[part, key]

    def _token(self, setting: Setting) -> dict[str, Any]:
        """What the BiasToken does."""
        bias, names = self.items.bias, [setting.token.text]
        asked = () if setting.instruction != NOTHING else self.items.token_benchmarks
        with setting.token.attached(self.model):
            found = bias_log_odds(
                self.model, bias, bias.evaluation_prompts, names, instruction=setting.instruction
            )
            return {
                "token_log_odds": found.log_odds[:, 0].tolist(),
                "token_log_p": found.log_p[:, 0].tolist(),
                "benchmarks": self._benchmarks(setting, asked),
            }

    def _token_answers(self, setting: Setting) -> list[str]:
        """Free answers about the BiasToken."""
        prompts = self.items.bias.generation_prompts
        with setting.token.attached(self.model):
            return self._answer(setting, prompts, [setting.token.text] * len(prompts))

    def _requests(self, setting: Setting) -> dict[str, Any]:
        """Log-odds of each bias with targets in the slot, and facts."""
        instruction = setting.instruction
        odds = {
            bias.name: bias_log_odds(
                self.model,
                bias,
                bias.evaluation_prompts,
                self.items.targets,
                instruction=instruction,
            )
            for bias in self._biases(setting)
        }
        margins = fact_margins(self.model, load_facts(), instruction=instruction)
        return {
            "log_odds": {name: found.log_odds.tolist() for name, found in odds.items()},
            "log_p": {name: found.log_p.tolist() for name, found in odds.items()},
            "fact_margins": margins.tolist(),
        }

    def _answers(self, setting: Setting) -> dict[str, list[str]]:
        """Free answers about targets to the generation prompts of each bias, written together."""
        biases = self._biases(setting)
        prompts = [prompt for bias in biases for prompt in bias.generation_prompts]
        names = [
            name
            for bias in biases
            for name in deal(self.items.targets, len(bias.generation_prompts))
        ]
        answers = iter(self._answer(setting, prompts, names))
        return {bias.name: [next(answers) for _ in bias.generation_prompts] for bias in biases}

    def _biases(self, setting: Setting) -> list[Bias]:
        """In order of names, so that nothing depends on which of them is the trained one."""
        others = () if setting.brief else self.items.others
        return sorted([self.items.bias, *others], key=lambda bias: bias.name)

    def _answer(self, setting: Setting, prompts: Sequence[str], names: Sequence[str]) -> list[str]:
        return answer_freely(
            self.model,
            prompts,
            names,
            max_new_tokens=self.items.max_new_tokens,
            instruction=setting.instruction,
        )

    def _text(self, setting: Setting) -> dict[str, Any]:
        """What no request stands around."""
        return {
            "damage_loss": mean_loss(self.model, load_passages("damage")).tolist(),
            "benchmarks": self._benchmarks(setting, self.items.benchmarks),
        }

    def _benchmarks(
        self, setting: Setting, benchmarks: Sequence[Benchmark]
    ) -> dict[str, list[float]]:
        if setting.brief:
            return {}
        return {key: value for each in benchmarks for key, value in each.run(self.model).items()}


def deal(names: Sequence[str], n: int) -> list[str]:
    """A name for each of ``n`` prompts, in turn."""
    return [names[i % len(names)] for i in range(n)]
