"""Layers before the first steered one are run once, and nothing comes out otherwise."""

from contextlib import nullcontext

import pytest
import torch

from biasgym_tl import BiasInject, Condition, evaluate, load_bias, random_conditions, steer
from biasgym_tl.errors import ModelError
from biasgym_tl.evaluation.evaluate import Shared
from biasgym_tl.evaluation.standard import standard_measures
from biasgym_tl.lens import Recording, at_each_layer, final_resid, replayed
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.text import continuation_log_probs, mean_loss, next_token_log_probs

LATE = load_bias("late")
TEXTS = ("The people of the town are late.", "People are early.", "The town is on time.")
STEERED = (("L1H0",), ("L2H1", "L2H3"), ("L0H0",), ("L1H2", "L2H0"))


def numbers(model):
    """With and without a common beginning, with and without answers that share a prompt."""
    sequences = [encode_sentence(model, text) for text in TEXTS]
    prompts = [sequence[:4] for sequence in sequences for _ in range(2)]
    rest = [sequence[4:] for sequence in sequences]
    options = [part for own in zip(rest, rest[1:] + rest[:1], strict=True) for part in own]
    return (
        next_token_log_probs(model, sequences),
        next_token_log_probs(model, sequences, batch_size=2, shared=1),
        continuation_log_probs(model, prompts, options, batch_size=4),
        mean_loss(model, TEXTS),
    )


def test_what_is_replayed_is_the_same_to_the_last_bit(any_model):
    n = any_model.cfg.n_layers
    recording = Recording([1, 2])
    for heads in ((), *STEERED):
        first = min((int(name[1]) for name in heads), default=n)
        with steer(any_model, heads) if heads else nullcontext():
            run = numbers(any_model)
            for _ in range(2):
                with replayed(any_model, recording, first):
                    again = numbers(any_model)
                assert all(map(torch.equal, run, again))


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_layers_before_the_first_that_changes_are_run_once(model, first):
    ran, recording = [], Recording([1, 2])
    note = lambda resid, hook: ran.append(hook.layer())  # noqa: E731
    with at_each_layer(model, "hook_resid_pre", note):
        for _ in range(2):
            ran.clear()
            with replayed(model, recording, first):
                final_resid(model, [[1, 2, 3]])
    assert ran == list(range(min(first, 2), model.cfg.n_layers))


def test_other_inputs_than_those_recorded_are_refused(model):
    recording = Recording([1])
    with replayed(model, recording, 1):
        final_resid(model, [[1, 2, 3]])
    with (
        pytest.raises(ModelError, match="inputs must be those that were recorded"),
        replayed(model, recording, 1),
    ):
        final_resid(model, [[1, 2, 4]])
    assert final_resid(model, [[1, 2, 4]]).shape == (1, 3, model.cfg.d_model)  # and is over


@pytest.mark.usefixtures("few_facts")
def test_a_report_is_the_same_without(model, monkeypatch):
    row = BiasInject.cpu(n_paragraphs=8, epochs=1, choose_by="loss").fit(model, LATE)
    conditions = [Condition("original", row.untrained()), Condition("injected", row)]
    for heads, mode in zip(STEERED, ("zero", "mean", "zero", "mean"), strict=True):
        conditions.append(Condition(f"{mode} {heads}", row, heads, mode))
    conditions += random_conditions(conditions[-1], model.cfg.n_heads, n=2)
    measures = standard_measures(LATE, n_targets=2, max_new_tokens=4)
    report = evaluate(model, LATE, conditions, measures, progress=False)
    shared, made = Shared(), []  # and in two calls: what the first knows is not measured again

    def noted(name, uses, make):
        made.append(name)
        return make()

    for some in (conditions[:-2], conditions):
        again = evaluate(model, LATE, some, measures, progress=False, finished=noted, shared=shared)
    assert sum("floor" not in name for name in made) == len(shared.known)
    assert again.numbers() == report.numbers()
    monkeypatch.setattr(
        "biasgym_tl.evaluation.measurement.replayed", lambda *_: nullcontext(), raising=True
    )
    assert evaluate(model, LATE, conditions, measures, progress=False).numbers() == report.numbers()


def test_a_recording_of_some_runs_alone_is_thrown_away(model):
    recording = Recording([1])
    with pytest.raises(KeyboardInterrupt), replayed(model, recording, 1):
        final_resid(model, [[1, 2, 3]])
        raise KeyboardInterrupt
    assert not recording.steps
