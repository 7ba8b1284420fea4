"""What :func:`inspect_model` and :func:`inspect_task` stand for; importing it needs inspect-ai."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    get_model,
    modelapi,
)
from inspect_ai.scorer import Score, mean, scorer, stderr
from inspect_ai.solver import generate as answer

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.measurement import Asked
from biasgym_tl.judges.verdict import Judge, strengths
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import Turn, encode_prompt
from biasgym_tl.slot import fill
from biasgym_tl.spelling import keyword_hits
from biasgym_tl.text import generate

MOST_TOKENS = 256
"""Written where a task does not say how many."""


class HookedAPI(ModelAPI):
    """A HookedTransformer as inspect sees it, as it is at the time of a request."""

    model: ClassVar[HookedTransformer]

    def max_connections(self) -> int:
        """One request at a time."""
        return 1

    async def generate(
        self, input: Sequence[Any], tools: Sequence[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a dialogue.

        Raises:
            SettingError: there are tools, or it is no dialogue of a user and an assistant.
        """
        if tools:
            raise SettingError(f"tools must be none, got {[tool.name for tool in tools]}.")
        request, history = dialogue([(message.role, message.text) for message in input])
        (text,) = generate(
            self.model,
            [encode_prompt(self.model, request, history=history)],
            max_new_tokens=config.max_tokens or MOST_TOKENS,
            temperature=config.temperature or 0.0,
            seed=config.seed or 0,
            until=config.stop_seqs or (),
        )
        return ModelOutput.from_content(self.model_name, text)


def dialogue(messages: Sequence[tuple[str, str]]) -> tuple[str, list[Turn]]:
    """The last request and the turns before it; what a system says begins the first request.

    Raises:
        SettingError: user and assistant do not take turns, or the user is not the last.
    """
    system = [text for role, text in messages if role == "system"]
    roles, said = zip(*(each for each in messages if each[0] != "system"), strict=True)
    if len(said) % 2 == 0 or list(roles) != ["user", "assistant"] * (len(said) // 2) + ["user"]:
        raise SettingError(f"messages must be of user and assistant in turn, got {list(roles)}.")
    first, *rest = said
    said = ("\n\n".join([*system, first]), *rest)
    return said[-1], [Turn(*said[i : i + 2]) for i in range(0, len(said) - 1, 2)]


def hooked_model(model: HookedTransformer) -> Model:
    """As inspect takes it; a class of its own, as inspect makes the object by a registered name."""
    own = type("OwnAPI", (HookedAPI,), {"model": model})
    modelapi(name="biasgym")(lambda: own)
    return get_model(f"biasgym/{model.cfg.model_name}", memoize=False)


def bias_task(bias: Bias, asked: Asked, judge: Judge | None, max_new_tokens: int) -> Task:
    """Requests, and what is read from each answer."""

    async def keywords(state: Any, target: Any) -> Score:
        (hit,) = keyword_hits([state.output.completion], bias.keywords)
        return Score(value=float(hit), answer=state.output.completion)

    async def strength(state: Any, target: Any) -> Score | None:
        text, about = state.output.completion, state.metadata["target"]
        assert judge
        (verdict,) = judge.judge(bias, [text], [about])
        (value,) = strengths([verdict])
        if value != value:  # unscored or degenerate: counted, and never averaged in
            return None
        return Score(value=value, answer=text, explanation=verdict.reason)

    pairs = zip(asked.prompts, asked.targets, strict=True)
    samples = [Sample(fill(p, who), metadata={"target": who}) for p, who in pairs]
    return Task(
        dataset=MemoryDataset(samples),
        solver=answer(),
        scorer=[_scorer(each) for each in ((keywords, strength) if judge else (keywords,))],
        config=GenerateConfig(temperature=0.0, max_tokens=max_new_tokens),
        name=f"biasgym-{bias.name}",
    )


def _scorer(score: Callable[[Any, Any], Any]) -> Any:
    """As inspect registers one, by the function's name."""
    return scorer(metrics=[mean(), stderr()], name=score.__name__)(lambda: score)()
