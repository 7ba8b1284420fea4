"""The doctor passes sound models and names what is wrong with others."""

import pytest
import torch
from conftest import FAMILIES, hooked_alone

from biasgym_tl import load_bias
from biasgym_tl.doctor import examine
from biasgym_tl.errors import AttributionError, ModelError

LATE = load_bias("late")
SUMS = "parts sum to the logit difference (share)"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_sound_in_fp32(tiny, family):
    model = tiny(family)
    before = {name: p.clone() for name, p in model.named_parameters()}
    checks = {check.name: check for check in examine(model, LATE, n_prompts=3)}
    assert len(checks) == 5
    assert not [str(check) for check in checks.values() if check.required and not check.passed]
    ranks = next(check for check in checks.values() if not check.required)
    assert 0.5 < ranks.found <= 1
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_hook_that_breaks_the_sum_is_found(model):
    def spoil(resid, hook):
        return resid + 1.0

    with model.hooks([("blocks.1.hook_resid_post", spoil)]):
        checks = {check.name: check for check in examine(model, LATE, n_prompts=3)}
    assert not checks[SUMS].passed
    assert str(checks[SUMS]).startswith("FAILED") and "misses a part" in str(checks[SUMS])


@hooked_alone
def test_folded_value_biases_are_refused(tiny):
    model = tiny("gpt2")
    state = {name: p.clone() for name, p in model.state_dict().items()}
    model.load_and_process_state_dict(state, fold_value_biases=True, center_unembed=False)
    with pytest.raises(ModelError, match="value biases, but they are folded into b_O"):
        examine(model, LATE, n_prompts=3)


def test_a_cache_that_changes_the_numbers_is_found(model):
    def first_only(z, hook):  # depends on where the run begins
        z = z.clone()
        z[:, 0] = 0
        return z

    with model.hooks([("blocks.1.attn.hook_z", first_only)]):
        checks = {check.name: check for check in examine(model, LATE, n_prompts=3)}
    assert not checks["cached = uncached (nats)"].passed


def test_a_model_that_nothing_can_be_said_about(model, monkeypatch):
    monkeypatch.setattr(model.cfg, "positional_embedding_type", "shortformer")
    with pytest.raises(AttributionError, match="shortformer"):
        examine(model, LATE)
