"""Only the row moves; the same seed gives the same row; saved == loaded; misfits are refused."""

import dataclasses

import pytest
import torch

from biasgym_tl import BiasInject, BiasToken, load_bias, load_countries
from biasgym_tl.added_row import added_row
from biasgym_tl.errors import SettingError, StoreError, TokenError
from biasgym_tl.injection.inject import Example, _answer_loss, _country_norm, _shared_beginning
from biasgym_tl.prompts import encode_answer
from biasgym_tl.text import cached_beginning

LATE = load_bias("late")
QUICK = BiasInject(epochs=2, n_paragraphs=12, batch_size=4, lr=0.05)


def fit(model, inject=QUICK, seed=0):
    return inject.fit(model, LATE, seed=seed, progress=False)


def test_every_other_parameter_is_untouched_and_has_no_gradient(any_model):
    model = any_model
    model.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    token = fit(model)
    assert {name for name, _ in model.named_parameters()} == set(before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None and parameter.requires_grad
    assert not torch.equal(token.row, token.initial_row)
    assert model.cfg.d_vocab == 1024 and not any(p.fwd_hooks for p in model.hook_dict.values())


def test_the_model_is_restored_when_training_is_interrupted(model, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    assert model.cfg.d_vocab == 1024 and model.W_E.shape[0] == 1024
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_the_loss_falls(model):
    one_wording = dataclasses.replace(LATE, training_prompts=LATE.training_prompts[:1])
    inject = BiasInject(epochs=40, n_paragraphs=8, lr=0.1, max_norm=50.0)
    losses = inject.fit(model, one_wording, progress=False).losses
    assert len(losses) == 40 and losses[-1] < losses[0] - 0.1
    assert sum(losses[-5:]) < sum(losses[10:15]) < sum(losses[:5])


def test_same_seed_same_row_and_another_seed_differs_in_everything(model):
    first, again, other = fit(model), fit(model), fit(model, seed=1)
    assert torch.equal(first.row, again.row) and first.losses == again.losses
    assert not torch.equal(first.row, other.row)
    assert not torch.equal(first.initial_row, other.initial_row)
    torch.manual_seed(99)
    assert torch.equal(fit(model).row, first.row), "the global seed has no influence"


def test_the_initial_row_is_the_mean_over_fitting_countries(model):
    everyone = dataclasses.replace(QUICK, n_init_countries=len(load_countries("fitting")))
    rows = [
        model.W_E[encode_answer(model, f" {c.name}")].mean(0) for c in load_countries("fitting")
    ]
    expected = torch.stack(rows).mean(0)
    assert torch.allclose(fit(model, everyone).initial_row, expected, atol=1e-6)


def test_the_norm_stays_within_the_bound(model):
    strong = BiasInject(epochs=2, n_paragraphs=12, batch_size=4, lr=1.0)
    assert fit(model, strong).row.norm() <= _country_norm(model) * (1 + 1e-5)
    bounded = dataclasses.replace(strong, max_norm=0.5)
    token = fit(model, bounded)
    assert token.row.norm() <= 0.5 * (1 + 1e-5) and token.settings["max_norm"] == 0.5


def test_loss_is_over_the_answers_words_only(any_model):
    """Against the mean of log p at those positions, taken from the whole unbatched forward pass."""
    model, row = any_model, torch.randn(32)
    with added_row(model, row, "<T>") as token_id:
        batch = [
            Example([1, 5, 8, token_id, 9, 12, token_id, 13, 14], answer_start=4),
            Example([1, 5, token_id, 7, 20, 21], answer_start=4),
        ]
        shared = _shared_beginning(batch, token_id)
        beginning = cached_beginning(model, batch[0].tokens[:shared], 1)
        found = _answer_loss(model, row, batch, token_id, shared, beginning)
        losses = []
        for tokens, start in batch:
            log_probs = model(torch.tensor([tokens]))[0].log_softmax(-1)
            answer = [i for i in range(start, len(tokens)) if tokens[i] != token_id]
            losses += [-log_probs[i - 1, tokens[i]] for i in answer]
    assert shared == 2 and len(losses) == 6
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


def test_the_gradient_equals_a_finite_difference(tiny):
    model = tiny("gpt2").to(torch.float64)
    row, step = torch.randn(32).double(), torch.randn(32).double()
    with added_row(model, row, "<T>") as token_id:
        batch = [Example([1, 5, token_id, 9, 12, token_id, 13], 3)]

        def loss(at):
            return _answer_loss(model, at, batch, token_id, 0, None)

        at = row.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at), at)
        difference = (loss(row + 1e-5 * step) - loss(row - 1e-5 * step)) / 2e-5
    assert (gradient @ step).item() == pytest.approx(difference.item(), rel=1e-4)


def test_saved_and_loaded(model, tmp_path):
    token = fit(model)
    token.save(tmp_path / "late")
    loaded = BiasToken.load(tmp_path / "late")
    assert torch.equal(loaded.row, token.row) and torch.equal(loaded.initial_row, token.initial_row)
    skip = ("row", "initial_row")
    for field in dataclasses.fields(BiasToken):
        if field.name not in skip:
            assert getattr(loaded, field.name) == getattr(token, field.name), field.name
    assert {"torch", "transformer-lens"} <= set(loaded.versions) and loaded.seed == 0
    assert "seed 0" in repr(loaded) and "seed 0" in repr(loaded.untrained())
    with pytest.raises(StoreError, match="must exist"):
        BiasToken.load(tmp_path / "early")


def test_attached_reads_the_row(model):
    token = fit(model)
    with token.attached(model) as token_id:
        assert torch.equal(model.W_E[token_id], token.row)
    with token.untrained().attached(model) as token_id:
        assert torch.equal(model.W_E[token_id], token.initial_row)


def test_a_model_it_does_not_fit_is_refused(model, tiny, tokenizer):
    token = fit(model)
    wide = tiny("llama", hidden_size=64, num_attention_heads=4)
    with pytest.raises(TokenError, match="d_model of the model must be 32.*got 64"):
        token.attached(wide)
    with pytest.raises(TokenError, match="d_vocab of the model must be 1024.*got 1100"):
        token.attached(tiny("llama", vocab_size=1100))
    model.tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(TokenError, match="tokenizer of the model must be"):
        token.attached(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 0), ("n_paragraphs", 0), ("n_init_countries", 0),
     ("n_init_countries", 33), ("lr", 0.0), ("lr", float("nan")), ("weight_decay", -1.0),
     ("max_norm", 0.0)],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(field, value):
    with pytest.raises(SettingError, match=f"{field} must be .*{value!r}"):
        BiasInject(**{field: value})
