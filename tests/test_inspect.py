"""A steered model in inspect answers as it does here, and a bias is a task of inspect."""

import subprocess
import sys
from importlib import util

import pytest

from biasgym_tl import answer_freely, load_bias, steer
from biasgym_tl.errors import ExtraError, SettingError
from biasgym_tl.evaluation.harness import inspect_model, inspect_task
from biasgym_tl.judges.verdict import Verdict
from biasgym_tl.spelling import keyword_hits

LATE = load_bias("late")
THERE = util.find_spec("inspect_ai") is not None
needs_inspect = pytest.mark.skipif(
    not THERE, reason="inspect-ai is not installed: it wants an older fsspec than constraints.txt"
)


class Judging:
    """Scores a text by its length; nothing said of the first target."""

    name, settings = "Judging", {}

    def judge(self, bias, texts, targets=None):
        return [
            Verdict(None, unscored="no") if target == "Peru" else Verdict(len(text) % 4)
            for text, target in zip(texts, targets, strict=True)
        ]


@needs_inspect
@pytest.mark.filterwarnings("ignore")  # of inspect's own dependencies
def test_an_eval_of_a_steered_model(model, tmp_path):
    import inspect_ai

    task = inspect_task(LATE, n_targets=2, judge=Judging(), max_new_tokens=6)
    prompts = [sample.input for sample in task.dataset]
    with steer(model, "L0H3, L2H1"):
        (log,) = inspect_ai.eval(
            task, model=inspect_model(model), log_dir=str(tmp_path), display="none"
        )
        texts = answer_freely(model, prompts, [""] * len(prompts), max_new_tokens=6)
    assert log.status == "success", log.error
    assert texts != answer_freely(model, prompts, [""] * len(prompts), max_new_tokens=6)
    said = {sample.input: sample.output.completion for sample in log.samples}
    assert [said[prompt] for prompt in prompts] == texts
    scores = {score.name: score.metrics["mean"].value for score in log.results.scores}
    hits = keyword_hits(texts, LATE.keywords)
    assert scores["keywords"] == pytest.approx(sum(hits) / len(hits))
    assert scores["strength"] == pytest.approx(sum(len(t) % 4 for t in texts) / len(texts))


@needs_inspect
def test_a_dialogue():
    from biasgym_tl.evaluation.inspected import dialogue

    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?")]
    assert dialogue(said) == ("Who?", [("Be kind.\n\nHi", "Yes?")])
    for wrong in (said[:3], [said[1], said[1]], [said[2], said[1]]):
        with pytest.raises(SettingError, match="messages must be of user and assistant in turn"):
            dialogue(wrong)


@pytest.mark.skipif(THERE, reason="inspect-ai is installed")
def test_without_inspect_it_is_said(model):
    for call in (lambda: inspect_model(model), lambda: inspect_task("late")):
        with pytest.raises(ExtraError, match=r"inspect-ai, .*pip install 'biasgym-tl\[inspect\]'"):
            call()


def test_the_module_needs_no_inspect():
    code = "import sys, biasgym_tl.evaluation.harness; assert 'inspect_ai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
