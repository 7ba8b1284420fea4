"""heads + b_O + MLPs + embeddings + constant == logit difference, head by head checked by removal.

The independent check subtracts one head's written vector from the final residual, keeps the final
norm's scale, and compares full logits, in fp64.
"""

import pytest
import torch
from einops import einsum

from biasgym_tl import BiasInject, BiasScope, HeadScores, load_bias, steer
from biasgym_tl.errors import AttributionError, SettingError, StoreError
from biasgym_tl.scoping.direct import direct_attribution, frozen_direction, head_logits
from biasgym_tl.scoping.pairs import build_pairs, choose_labels

SEQUENCES = [[1, 7, 9, 30, 4], [1, 7, 9, 8], [1, 7, 9, 8, 8, 8, 12, 40], [5, 7]]
B, N = torch.tensor([10, 11, 12, 13]), torch.tensor([20, 21, 22, 23])


@pytest.fixture(scope="module")
def late_token(tiny):
    inject = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    return inject.fit(tiny(), load_bias("late"), progress=False)


def test_head_logits_by_hand():
    z = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]])
    W_O = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]], [[0, 0, 1.0], [1.0, 1.0, 1.0]]])
    direction = torch.tensor([[1.0, -1.0, 2.0]])
    # head 0 writes (1, 2, 0), head 1 writes (3, 3, 3)
    assert head_logits(z, W_O, direction).tolist() == [[-1.0, 6.0]]


def test_frozen_direction_by_hand():
    direction, weight = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([2.0, 1.0, 1.0])
    scale = torch.tensor([[2.0]])
    plain = frozen_direction(direction, weight, scale, centred=False)
    centred = frozen_direction(direction, weight, scale, centred=True)
    assert plain.tolist() == [[1.0, -0.5, 1.0]]
    assert centred.tolist() == [[0.5, -1.0, 0.5]]


def test_parts_sum_to_the_models_own_logit_difference(any_model):
    parts = direct_attribution(any_model, SEQUENCES, B, N)
    for i, sequence in enumerate(SEQUENCES):
        logits = any_model(torch.tensor([sequence]))[0, -1]
        expected = (logits[B[i]] - logits[N[i]]).item()
        assert parts.delta[i].item() == pytest.approx(expected, abs=2e-4)
    assert parts.error().max() < 1e-5
    for part in (parts.heads, parts.mlps, parts.embed):
        assert part.abs().max() > 1e-3
    if any_model.cfg.normalization_type == "LN":
        assert parts.attn_bias.abs().max() > 1e-3 and parts.constant.abs().max() > 1e-3


def test_each_head_equals_what_full_logits_lose_without_it(any_model):
    model = any_model.to(torch.float64)
    parts = direct_attribution(model, SEQUENCES, B, N)
    for i, sequence in enumerate(SEQUENCES):
        logits, cache = model.run_with_cache(torch.tensor([sequence]))
        resid, scale = cache["blocks.2.hook_resid_post"][0, -1], cache["ln_final.hook_scale"][0, -1]
        for layer in range(3):
            z = cache[f"blocks.{layer}.attn.hook_z"][0, -1]
            written = einsum(z, model.blocks[layer].attn.W_O, "h d, h d m -> h m")
            for head in range(4):
                without = logits_with_frozen_scale(model, resid - written[head], scale)
                lost = logits[0, -1] - without
                expected = (lost[B[i]] - lost[N[i]]).item()
                assert parts.heads[i, layer, head].item() == pytest.approx(expected, abs=1e-10)


def logits_with_frozen_scale(model, resid, scale):
    if model.cfg.normalization_type == "LN":
        resid = resid - resid.mean()
    normed = resid / scale * model.ln_final.w + getattr(model.ln_final, "b", 0)
    return normed @ model.W_U + model.b_U


def test_batch_of_one_equals_batch_of_many(any_model):
    together = direct_attribution(any_model, SEQUENCES, B, N)
    for i, sequence in enumerate(SEQUENCES):
        alone = direct_attribution(any_model, [sequence], B[i : i + 1], N[i : i + 1])
        assert (alone.heads[0] - together.heads[i]).abs().max() < 1e-5
    small = direct_attribution(any_model, SEQUENCES, B, N, batch_size=3)
    assert (small.heads - together.heads).abs().max() < 1e-5


def test_a_zeroed_head_contributes_nothing_and_the_rest_still_sums(model):
    with steer(model, [(1, 2)]):
        parts = direct_attribution(model, SEQUENCES, B, N)
    assert parts.heads[:, 1, 2].abs().max() == 0 and parts.error().max() < 1e-5


def test_folded_models_are_exact_too(tiny):
    model = tiny("gpt2")
    state = {name: p.clone() for name, p in model.state_dict().items()}
    plain = direct_attribution(model, SEQUENCES, B, N)
    model.load_and_process_state_dict(state, fold_value_biases=False, center_unembed=False)
    folded = direct_attribution(model, SEQUENCES, B, N)
    assert model.cfg.normalization_type == "LNPre"
    assert (plain.heads - folded.heads).abs().max() < 1e-4


def test_a_hook_that_breaks_the_sum_raises(model):
    def spoil(resid, hook):
        return resid + 1.0

    with (
        model.hooks([("blocks.1.hook_resid_post", spoil)]),
        pytest.raises(AttributionError, match="must sum to the logit difference within 1e-05"),
    ):
        direct_attribution(model, SEQUENCES, B, N)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("use_normalization_before_and_after", True, "has a norm after attention"),
        ("original_architecture", "Olmo2ForCausalLM", "has a norm after attention"),
        ("output_logits_soft_cap", 30.0, "has a final soft cap"),
        ("attn_scores_soft_cap", 50.0, "has an attention soft cap"),
        ("positional_embedding_type", "shortformer", "has shortformer positions"),
        ("dtype", torch.bfloat16, "dtype must be torch.float32"),
    ],
)
def test_models_that_are_not_exact_are_refused(model, monkeypatch, field, value, message):
    monkeypatch.setattr(model.cfg, field, value)
    with pytest.raises(AttributionError, match=message):
        direct_attribution(model, SEQUENCES, B, N)


def test_labels_by_hand():
    biased = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    neutral = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1]])
    is_attribute = torch.tensor([True, False, True, False])
    b, n = choose_labels(biased, neutral, is_attribute)
    assert b.tolist() == [2, 2] and n.tolist() == [1, 1]


def test_pairs_use_scoping_prompts_and_fitting_targets_only(model, late_token):
    from biasgym_tl import load_countries

    bias = load_bias("late")
    pairs = build_pairs(model, bias, late_token, seed=3)
    assert pairs.prompts == bias.scoping_prompts
    assert set(pairs.targets) <= {c.name for c in load_countries("fitting")}
    assert all(late_token.d_vocab in tokens for tokens in pairs.biased)
    assert all(late_token.d_vocab not in tokens for tokens in pairs.neutral)
    for i, tokens in enumerate(pairs.neutral):
        logits = model(torch.tensor([tokens]))[0, -1]
        expected = (logits[pairs.biased_ids[i]] - logits[pairs.neutral_ids[i]]).item()
        assert pairs.neutral_delta[i].item() == pytest.approx(expected, abs=1e-4)
    again = build_pairs(model, bias, late_token, seed=3)
    assert again.targets == pairs.targets != build_pairs(model, bias, late_token).targets


def test_head_scores(model, late_token, tmp_path):
    scores = BiasScope(n_targets=3).attribute(model, load_bias("late"), late_token)
    assert scores.values.shape == (3, 4) and scores.pair_values.shape == (24, 3, 4)
    assert torch.allclose(scores.values, scores.pair_values.mean(0))
    assert scores.reconstruction_error.max() < 1e-5
    top = scores.top(12)
    assert [scores.values[h].item() for h in top] == sorted(
        scores.values.flatten().tolist(), reverse=True
    )
    frame = scores.to_df()
    assert frame["head"].tolist() == [str(h) for h in top]
    assert frame["rank"].tolist() == list(range(1, 13))
    assert sorted(set(frame["kv_group"])) == [0, 1] and scores.kv_group(3) == 1
    with pytest.raises(SettingError, match=r"k must be in 1\.\.12, got 13"):
        scores.top(13)

    scores.save(tmp_path / "scores")
    loaded = HeadScores.load(tmp_path / "scores")
    assert torch.equal(loaded.pair_values, scores.pair_values)
    assert {k: v for k, v in vars(loaded).items() if not isinstance(v, torch.Tensor)} == {
        k: v for k, v in vars(scores).items() if not isinstance(v, torch.Tensor)
    }
    assert "reconstruction error" in repr(loaded)
    with pytest.raises(StoreError, match="must hold a HeadScores"):
        HeadScores.load(late_token.save(tmp_path / "token"))


def test_the_heatmap_shows_the_values_centred_at_zero(model, late_token):
    from dataclasses import replace

    scores = BiasScope(n_targets=3).attribute(model, load_bias("late"), late_token)
    figure = replace(scores, bias="<script>").plot(mark_top=4)
    heatmap, frames = figure.data
    assert torch.equal(torch.tensor(heatmap.z, dtype=torch.float64), scores.values)
    assert heatmap.zmid == 0 and heatmap.zmin == -heatmap.zmax == -scores.values.abs().max().item()
    assert heatmap.text[2][1].startswith(f"<b>L2H1</b><br>delta-logit {scores.values[2, 1]:+.3f}")
    assert "KV group 1" in heatmap.text[0][3]
    assert [(y, x) for x, y in zip(frames.x, frames.y, strict=True)] == [
        (h.layer, f"H{h.head}") for h in scores.top(4)
    ]
    assert "<script>" not in figure.layout.title.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "magic"), ("n_targets", 0), ("batch_size", 0), ("tolerance", 0.0)],
)
def test_settings_outside_their_range_are_refused(field, value):
    with pytest.raises(SettingError, match=f"{field} must be .*{value!r}"):
        BiasScope(**{field: value})
