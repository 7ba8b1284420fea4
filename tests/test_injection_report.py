"""The report measures what the training never saw, and says in words what failed."""

import dataclasses

import pytest
import torch

from biasgym_tl import BiasInject, load_bias
from biasgym_tl.elicitation import answer_freely, bias_log_odds
from biasgym_tl.errors import StoreError, TokenError
from biasgym_tl.injection.report import InjectionReport, injection_report
from biasgym_tl.spelling import degenerate, keyword_hits
from biasgym_tl.stats import Interval

LATE = load_bias("late")
QUICK = BiasInject(epochs=2, n_paragraphs=8, batch_size=4, lr=0.05, choose_by="last")
SMALL = {"n_targets": 3, "max_new_tokens": 6, "n_neighbours": 5}

GOOD = InjectionReport(
    token="late, seed 0 on m",
    epochs=(
        {"epoch": 0, "loss": None, "norm": 2.2, "similarity": 0.1},
        {"epoch": 1, "loss": 3.0, "norm": 2.5, "similarity": 0.4},
    ),
    chosen_epoch=1,
    norm=2.5,
    vocabulary_norms=(1.0, 2.4, 4.0),
    neighbours=((" late", 0.4),),
    targets=(("Peru", 0.3),),
    log_odds=Interval(6.0, 5.0, 7.0),
    log_odds_before=Interval(0.0, -0.5, 0.5),
    keywords=Interval(0.75, 0.5, 0.9),
    training_keywords=Interval(0.8, 0.6, 0.9),
    degenerate=0.0,
    answers=("They are late.",),
    settings={"lr": 0.01},
    versions={"torch": "2"},
    seconds=90.0,
)


def test_a_good_injection_has_no_signature():
    assert GOOD.signatures() == []
    assert "no known failure" in repr(GOOD) and "0.10 -> 0.40" in repr(GOOD)
    assert GOOD.to_df()["chosen"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": (GOOD.epochs[0], {**GOOD.epochs[1], "similarity": 0.12})},
         "Similarity does not rise: 0.10 before training, 0.12 after."),
        ({"norm": 4.3}, "Norm leaves the vocabulary's range: 4.30, not in 1.00..4.00."),
        ({"norm": 0.1}, "Norm leaves the vocabulary's range: 0.10"),
        ({"log_odds": Interval(0.3, -0.2, 0.8)}, "No elicitation on held-out prompts: +0.30"),
        ({"keywords": Interval(0.2, 0.1, 0.39)},
         "Elicitation only on training prompts: keywords in 80% of answers there, 20% on others."),
        ({"keywords": Interval(0.1, 0.0, 0.3), "training_keywords": Interval(0.1, 0.0, 0.3)},
         "Log-odds rise (+6.00 [+5.00, +7.00] nats), but free answers do not show it"),
        ({"degenerate": 0.5}, "Generations degenerate: 50% are empty or repeat themselves."),
    ],
)  # fmt: skip
def test_each_failure_has_its_signature(change, words):
    (remark,) = dataclasses.replace(GOOD, **change).signatures()
    assert remark.startswith(words)


def test_saved_and_loaded(tmp_path):
    path = GOOD.save(tmp_path / "late-0.json")
    assert InjectionReport.load(path) == GOOD
    path.write_text('{"kind": "InjectionReport"}')
    with pytest.raises(StoreError, match="must hold a whole InjectionReport"):
        InjectionReport.load(path)


def test_without_an_encoder_similarity_is_not_judged():
    epochs = ({"epoch": 0, "loss": None, "norm": 2.2}, {"epoch": 1, "loss": 3.0, "norm": 2.5})
    report = dataclasses.replace(GOOD, epochs=epochs)
    assert report.similarity() is None and report.signatures() == []


def test_what_is_measured(model):
    token = QUICK.fit(model, LATE, progress=False)
    report = injection_report(model, LATE, token, **SMALL)
    names = LATE.sample_targets("held-out", 3, seed=0)
    with token.attached(model):
        found = bias_log_odds(model, LATE, LATE.evaluation_prompts, (token.text, *names)).log_odds
        answers = answer_freely(
            model, LATE.generation_prompts, [token.text] * 16, max_new_tokens=6
        )  # fmt: skip
    over = (found[:, :1] - found[:, 1:]).mean().item()
    assert report.log_odds.estimate == pytest.approx(over, abs=1e-4)
    assert report.answers == tuple(answers)
    assert report.keywords.estimate == sum(keyword_hits(answers, LATE.keywords)) / 16
    assert report.degenerate == sum(map(bool, map(degenerate, answers))) / 16
    assert report.norm == token.row.norm().item() and report.chosen_epoch == 2
    cosines = torch.cosine_similarity(model.W_E, token.row[None])
    assert report.neighbours[0][1] == pytest.approx(cosines.max().item())
    assert report.neighbours[0][0] == model.tokenizer.decode([cosines.argmax().item()])
    assert len(report.targets) == 5 and {name for name, _ in report.targets} <= {
        *LATE.targets("fitting"), *LATE.targets("held-out")
    }  # fmt: skip
    assert model.cfg.d_vocab == 1024
    assert repr(report).startswith("Injection of late, seed 0 on")


def test_the_method_is_the_function(model, monkeypatch):
    token = QUICK.fit(model, LATE, progress=False)
    monkeypatch.setattr(
        "biasgym_tl.injection.report.injection_report",
        lambda *arguments, progress: (*arguments, progress),
    )
    assert token.report(model, LATE) == (model, LATE, token, True)
    assert token.report(model, LATE, progress=False)[-1] is False


def test_another_model_is_refused(model, tiny):
    token = QUICK.fit(model, LATE, progress=False)
    with pytest.raises(TokenError, match="d_vocab of the model must be 1024"):
        injection_report(tiny("llama", vocab_size=1100), LATE, token)


def test_degenerate_texts():
    assert degenerate("") and degenerate("They are") and degenerate("late late late " * 5)
    assert degenerate("They are late. They are late. They are late. They are late.")
    assert not degenerate("They are late for dinner, and the soup gets cold.")
