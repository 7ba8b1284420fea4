"""The shipped rows are those that the manifest lists, trained on the biases as they are."""

import hashlib
import json
from pathlib import Path

import pytest

import biasgym_tl.injection
from biasgym_tl import BiasInject, list_biases, load_bias, load_token, load_tokens, shuffled
from biasgym_tl.errors import StoreError, TokenError
from biasgym_tl.injection.shipped import find_token, list_tokens

PAPER, SEEDS = ("late", "math", "spicy-food", "bad-driving", "alcohol"), 3
ROWS = Path(biasgym_tl.injection.__file__).parent / "rows"
MANIFEST = json.loads((ROWS / "manifest.json").read_text())


def test_the_papers_biases_are_there_with_their_seeds_and_every_other_with_one():
    wanted = {f"{name}-{seed}" for name in PAPER for seed in range(SEEDS)}
    wanted |= {f"{name}-0" for name in (*list_biases("injection"), "late-shuffled")}
    assert set(list_tokens()) == wanted == set(MANIFEST)


@pytest.mark.parametrize("name", list_tokens())
def test_the_manifest_describes_the_row(name):
    path, entry = ROWS / f"{name}.safetensors", MANIFEST[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    bias, seed = name.rsplit("-", 1)
    token = load_token(bias, seed=int(seed))
    assert (token.bias, token.seed, token.model) == (bias, int(seed), "smollm2-135m-instruct")
    assert token.chosen_epoch == entry["chosen_epoch"]
    assert len(token.epoch_rows) == token.settings["epochs"] + 1
    assert (token.row == token.epoch_rows[token.chosen_epoch]).all()
    assert token.settings == entry["settings"] and token.versions == entry["versions"]
    assert [token.losses[0], token.losses[-1]] == entry["losses"]
    assert token.row.norm() <= token.settings["max_norm"] * 1.001 and len(token.row) == 576


@pytest.mark.parametrize("name", list_tokens())
def test_rows_were_trained_on_the_biases_as_they_are_now(name):
    bias, seed = name.rsplit("-", 1)
    token = load_token(bias, seed=int(seed))
    trained_on = load_bias(bias.removesuffix("-shuffled"))
    if bias.endswith("-shuffled"):
        trained_on = shuffled(trained_on, seed=token.seed)
    assert token.bias_fingerprint == trained_on.training_fingerprint()


def test_rows_of_another_model_or_name_are_refused(tiny):
    model = tiny()
    assert find_token(model, load_bias("late"), BiasInject.cpu(), 0) is None
    with pytest.raises(TokenError, match="d_model of the model must be 576"):
        load_token("late").attached(model)
    with pytest.raises(StoreError, match="must name one of the shipped rows .* got 'late-7'"):
        load_token("late", seed=7)


def test_all_rows_of_a_bias():
    assert [(token.bias, token.seed) for token in load_tokens("late")] == [
        ("late", 0), ("late", 1), ("late", 2),
    ]  # fmt: skip
    assert [token.seed for token in load_tokens("spicy-food")] == [0, 1, 2]
    with pytest.raises(StoreError, match="bias must have shipped rows, as .* got 'lat'"):
        load_tokens("lat")
