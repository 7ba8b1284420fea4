"""heads + b_O + MLPs + embeddings + constant == logit difference, head by head checked by removal.

The independent check subtracts one head's written vector from the final residual, keeps the scales
of all norms, and compares full logits, in fp64. Every family is checked, with random weights and
biases everywhere, also where its checkpoints have none.
"""

import pytest
import torch
from conftest import EXACT, hooked_alone
from einops import einsum

from biasgym_tl import BiasInject, BiasScope, HeadScores, answer_attention, load_bias, steer
from biasgym_tl.allowed import METHODS
from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.errors import AttributionError, SettingError, StoreError
from biasgym_tl.lens import ENGINE, attention_weight, norm_bias, norm_weight, post_norm
from biasgym_tl.scoping.attention import position_attribution
from biasgym_tl.scoping.direct import (
    continuation_attribution,
    direct_attribution,
    frozen_direction,
    head_logits,
)
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


@pytest.fixture
def random_bias_model(any_model):
    """In fp64, with output biases of attention, which most families lack. On a bridge in fp32: its
    norms compute so, and in fp64 it has NaN where padding reaches beyond a window."""
    torch.manual_seed(1)
    for layer in range(any_model.cfg.n_layers):
        b_O = attention_weight(any_model, layer, "b_O")  # a bridge has none where the family has
        b_O.copy_(torch.randn_like(b_O) * 0.3)
    return any_model.to(torch.float64) if ENGINE == "hooked" else any_model


def before_cap(model, logits):
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.atanh(logits / cap) if cap > 0 else logits


def test_parts_sum_to_the_models_own_logit_difference(random_bias_model):
    model = random_bias_model
    parts = direct_attribution(model, SEQUENCES, B, N)
    for i, sequence in enumerate(SEQUENCES):
        logits = before_cap(model, model(torch.tensor([sequence]))[0, -1])
        expected = (logits[B[i]] - logits[N[i]]).item()
        assert parts.delta[i].item() == pytest.approx(expected, abs=EXACT)
    assert parts.error().max() < EXACT
    for part in (parts.heads, parts.mlps, parts.embed):
        assert part.abs().max() > 1e-3
    has_bias = bool(attention_weight(model, 0, "b_O").any())
    assert (parts.attn_bias.abs().max() > 1e-3) == has_bias
    assert has_bias or ENGINE == "bridge"
    if model.cfg.normalization_type == "LN":
        assert parts.constant.abs().max() > 1e-3


def test_parts_sum_in_single_precision(any_model):
    assert direct_attribution(any_model, SEQUENCES, B, N).error().max() < 1e-5


def test_each_head_equals_what_full_logits_lose_without_it(random_bias_model):
    model = random_bias_model
    parts = direct_attribution(model, SEQUENCES, B, N)
    for i, sequence in enumerate(SEQUENCES):
        logits, cache = model.run_with_cache(torch.tensor([sequence]))
        resid, scale = cache["blocks.2.hook_resid_post"][0, -1], cache["ln_final.hook_scale"][0, -1]
        full = before_cap(model, logits[0, -1])
        for layer in range(model.cfg.n_layers):
            z = cache[f"blocks.{layer}.attn.hook_z"][0, -1]
            written = einsum(z, attention_weight(model, layer, "W_O"), "h d, h d m -> h m")
            attention = written.sum(0) + attention_weight(model, layer, "b_O")
            for head in range(4):
                lost = after_attention(model, cache, layer, attention)
                lost = lost - after_attention(model, cache, layer, attention - written[head])
                without = full - logits_with_frozen_scale(model, resid - lost, scale)
                expected = (without[B[i]] - without[N[i]]).item()
                assert parts.heads[i, layer, head].item() == pytest.approx(expected, abs=EXACT)


def after_attention(model, cache, layer, vector):
    """What the model's own norm after attention makes of a vector, with its scale frozen."""
    name = post_norm(model, layer)
    if name is None:
        return vector
    scale = cache[f"blocks.{layer}.{name}.hook_scale"][:, -1:]
    with model.hooks([(f"blocks.{layer}.{name}.hook_scale", lambda value, hook: scale)]):
        return getattr(model.blocks[layer], name)(vector[None, None])[0, 0]


def logits_with_frozen_scale(model, resid, scale):
    if model.cfg.normalization_type == "LN":
        resid = resid - resid.mean()
    bias = norm_bias(model.ln_final)
    normed = resid / scale * norm_weight(model.ln_final) + (0 if bias is None else bias)
    return normed @ model.W_U + model.b_U


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
def test_leaving_out_the_norm_after_attention_breaks_the_sum(tiny, monkeypatch, family):
    model = tiny(family)
    monkeypatch.setattr("biasgym_tl.scoping.direct.post_norm", lambda model, layer: None)
    with pytest.raises(AttributionError, match="must sum to the logit difference"):
        direct_attribution(model, SEQUENCES, B, N)


def test_positions_sum_to_the_heads(random_bias_model):
    model = random_bias_model
    parts = direct_attribution(model, SEQUENCES, B, N)
    for i, sequence in enumerate(SEQUENCES):
        found = position_attribution(model, sequence, int(B[i]), int(N[i]))
        assert found.shape == (3, 4, len(sequence))
        assert (found.sum(-1) - parts.heads[i]).abs().max() < EXACT


def test_attention_from_the_answer(any_model):
    for sequence in SEQUENCES:
        _, cache = any_model.run_with_cache(torch.tensor([sequence]))
        found = answer_attention(any_model, sequence)
        assert found.shape == (3, 4, len(sequence))
        assert torch.allclose(found.sum(-1), torch.ones(3, 4), atol=1e-5)
        for layer in range(3):
            expected = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1]
            assert (found[layer] - expected).abs().max() < 1e-5


def test_continuations_of_one_token_are_the_first_token(any_model):
    model = any_model.to(torch.float64)
    first = direct_attribution(model, SEQUENCES, B, N)
    forced = continuation_attribution(model, SEQUENCES, B[:, None].tolist(), N[:, None].tolist())
    for one, other in zip(first, forced, strict=True):
        assert (one - other).abs().max() < EXACT


def test_longer_continuations_sum_their_tokens(random_bias_model):
    model = random_bias_model
    biased, neutral = [[3, 8], [9], [4, 4, 2], [7]], [[5], [6, 1], [2], [8, 8]]
    parts = continuation_attribution(model, SEQUENCES, biased, neutral)

    def forced(prompt, answer):
        logits = before_cap(model, model(torch.tensor([prompt + answer]))[0])
        return sum(
            (logits[len(prompt) - 1 + i, token] - logits[len(prompt) - 1 + i].mean()).item()
            for i, token in enumerate(answer)
        )

    for i, prompt in enumerate(SEQUENCES):
        expected = forced(prompt, biased[i]) - forced(prompt, neutral[i])
        assert parts.delta[i].item() == pytest.approx(expected, abs=EXACT)
    assert parts.error().max() < EXACT


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


@hooked_alone
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
        ("positional_embedding_type", "shortformer", "in the residual stream, got 'shortformer'"),
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
    from biasgym_tl.biases.countries import load_countries

    bias = load_bias("late")
    pairs = build_pairs(model, bias, late_token, seed=3)
    assert pairs.prompts == bias.scoping_prompts
    fitting = {country.name for country in load_countries("fitting")}
    assert {name for targets in pairs.targets for name in targets} <= fitting
    assert all(late_token.d_vocab in tokens for tokens in pairs.biased)
    assert all(late_token.d_vocab not in tokens for (tokens,) in pairs.neutral)
    again = build_pairs(model, bias, late_token, seed=3)
    assert again.targets == pairs.targets != build_pairs(model, bias, late_token).targets


def test_the_neutral_side(model, late_token):
    from biasgym_tl.added_row import target_rows

    bias = load_bias("late")
    kept: dict = {}

    def finished(name, uses, make):
        return kept.setdefault(repr(uses), make() if repr(uses) not in kept else None)

    for token in (late_token, None, late_token):
        found = build_pairs(model, bias, token, seed=3, finished=finished)
        wanted = build_pairs(model, bias, token, seed=3)
        assert torch.equal(found.neutral_ids, wanted.neutral_ids)
        assert torch.equal(found.biased_ids, wanted.biased_ids)
    assert len(kept) == 1  # what targets say does not depend on the token
    several = build_pairs(model, bias, late_token, n_targets=3, neutral="several")
    assert all(targets == several.label_targets for targets in several.targets)
    closest = build_pairs(model, bias, late_token, n_targets=3, neutral="closest")
    rows = target_rows(model, closest.label_targets)
    cosine = rows @ late_token.row / rows.norm(dim=1)
    assert set(closest.targets) == {(closest.label_targets[int(cosine.argmax())],)}
    with pytest.raises(SettingError, match="neutral must be 'random' or 'several' without a token"):
        build_pairs(model, bias, None, neutral="closest")
    with pytest.raises(SettingError, match="neutral must be one of .* got 'nobody'"):
        build_pairs(model, bias, late_token, neutral="nobody")


@pytest.mark.parametrize("method", [m for m in METHODS if m != "slot_patching"])
def test_every_method_scores_both_sides(model, late_token, method):
    bias = load_bias("late")
    scope = BiasScope(method=method, contrast="difference", neutral="several", n_targets=2)
    scores = scope.attribute(model, bias, late_token)
    assert scores.pair_values.shape == (24, 3, 4)
    assert scores.neutral_values.shape == (24, 2, 3, 4) and scores.neutral_delta.shape == (24, 2)
    differences = scores.pair_values[:, None] - scores.neutral_values
    assert torch.allclose(scores.values, differences.mean((0, 1)))
    assert (scores.reconstruction_error is None) == (method != "direct")
    plain = BiasScope(method=method, neutral="several", n_targets=2)
    assert torch.allclose(
        plain.attribute(model, bias, late_token).values, scores.pair_values.mean(0)
    )


CONTRASTS = [
    Contrast("Folks in {target} turn up", "late", "early"),
    Contrast("The guests of {target} were", "always late", "always on time"),
    Contrast("Trains in {target} run", "behind", "on time"),
]


def test_answers_of_contrasts_as_labels(model, late_token):
    bias = load_bias("late")
    first = BiasScope().attribute(model, bias, late_token, contrasts=CONTRASTS)
    assert first.biased_labels == (" late", " behind") and first.neutral_labels == (" early", " on")
    assert first.left_out == ("The guests of {target} were",)  # both begin with " always"
    assert first.prompts == (CONTRASTS[0].prompt, CONTRASTS[2].prompt)
    assert "2 pairs, 1 left out" in repr(first)
    whole = BiasScope(label="continuation", contrast="difference")
    forced = whole.attribute(model, bias, late_token, contrasts=CONTRASTS)
    assert forced.biased_labels[1] == " always late" and forced.left_out == ()
    assert len(forced.prompts) == 3 and forced.reconstruction_error.max() < 1e-5
    assert (forced.pair_values[0] - first.pair_values[0]).abs().max() < 1e-5  # one token each
    assert first.settings["contrasts"] == forced.settings["contrasts"] is not None
    token = BiasScope(label="token").attribute(model, bias, late_token, contrasts=CONTRASTS[:1])
    assert (token.pair_values[0] - first.pair_values[0]).abs().max() < 1e-5


def test_labels_that_do_not_fit(model, late_token):
    bias = load_bias("late")
    with pytest.raises(SettingError, match=r"label must be one of \['first'\], got 'token'"):
        BiasScope(label="token").attribute(model, bias, late_token)
    with pytest.raises(SettingError, match="must be one token under label 'token', got 'always la"):
        BiasScope(label="token").attribute(model, bias, late_token, contrasts=CONTRASTS[1:])
    with pytest.raises(SettingError, match="begin with different tokens, got none in 1"):
        BiasScope().attribute(model, bias, late_token, contrasts=CONTRASTS[1:2])


def test_total_effects_are_falls_of_the_difference(model, late_token):
    bias = load_bias("late")
    pairs = build_pairs(model, bias, late_token)
    for mode in ("zero", "mean"):
        scores = BiasScope(method=f"{mode}_ablation").attribute(model, bias, late_token)
        with late_token.attached(model), steer(model, [(1, 2)], mode):
            found = [model(torch.tensor([tokens]))[0, -1] for tokens in pairs.biased]
        for i, logits in enumerate(found):
            without = (logits[pairs.biased_ids[i]] - logits[pairs.neutral_ids[i]]).item()
            fall = scores.delta[i].item() - without
            assert scores.pair_values[i, 1, 2].item() == pytest.approx(fall, abs=2e-4)


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
    (heatmap,) = figure.data
    assert torch.equal(torch.tensor(heatmap.z, dtype=torch.float64), scores.values)
    assert heatmap.zmid == 0 and heatmap.zmin == -heatmap.zmax == -scores.values.abs().max().item()
    assert heatmap.text[2][1].startswith(f"<b>L2H1</b><br>delta-logit {scores.values[2, 1]:+.3f}")
    assert "KV group 1" in heatmap.text[0][3]
    corners = [f"M{h.head - 0.5},{h.layer - 0.5}" for h in scores.top(4)]
    for shape in figure.layout.shapes:
        assert [part.partition("H")[0] for part in shape.path.split()] == corners
    assert "<script>" not in figure.layout.title.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method must be one of .* got 'magic'"),
        ({"contrast": "both"}, "contrast must be one of .* got 'both'"),
        ({"neutral": "nobody"}, "neutral must be one of .* got 'nobody'"),
        ({"ablate_to": "nothing"}, "ablate_to must be one of .* got 'nothing'"),
        ({"n_targets": 0}, "n_targets must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance must be positive, got 0.0"),
        ({"label": "word"}, "label must be one of .* got 'word'"),
        (
            {"label": "continuation", "method": "zero_ablation"},
            "label must be 'first' or 'token' for the method 'zero_ablation'",
        ),
        ({"answer_only": True}, "answer_only must be False for the method 'direct'"),
        ({"ablate_to": "mean"}, "ablate_to must be 'zero' for the method 'direct', got 'mean'"),
        (
            {"method": "attribution_patching", "ablate_to": "neutral", "contrast": "difference"},
            "contrast must be 'biased' for a patch from the neutral run",
        ),
        (
            {"method": "attribution_patching", "ablate_to": "neutral", "neutral": "several"},
            "neutral must be 'random' or 'closest' for a patch from the neutral run",
        ),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        BiasScope(**settings)
