"""What a model's name means is known without TransformerLens, and is what TransformerLens says."""

import json

import pytest
from transformer_lens import loading_from_pretrained as lens_loading

from biasgym_tl.errors import ModelError
from biasgym_tl.origin import listed_names, model_sizes, not_found
from biasgym_tl.packaged import PACKAGED, packaged_folder


def test_listed_names_are_those_of_transformer_lens():
    theirs = lens_loading.make_model_alias_map()
    assert listed_names() == {alias.lower(): name for alias, name in theirs.items()}


def test_sizes_are_those_of_the_loaded_model(any_model, tmp_path, request):
    from conftest import tiny_config

    tiny_config(request.node.callspec.params["any_model"]).save_pretrained(tmp_path)
    cfg = any_model.cfg
    assert model_sizes(str(tmp_path)) == (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_vocab)


def test_a_configuration_in_other_words_gives_no_sizes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    assert model_sizes(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="must be an object, got"):
        model_sizes(str(tmp_path))


def test_names_that_are_near_are_proposed():
    for name, meant in (("smollm2", "smollm2-135m-instruct"), ("pythia-70", "pythia-70m")):
        assert f"{meant!r}" in not_found(name, name, OSError("no such name"))
    assert "Did you mean" not in not_found("gpt2", "gpt2", OSError("no network"))


@pytest.mark.real_model
@pytest.mark.parametrize("name", PACKAGED)
def test_sizes_of_packaged_models_are_those_of_their_files(name):
    folder = packaged_folder(name)
    if folder is None:
        pytest.skip(f"the package {PACKAGED[name].package} is not installed")
    assert model_sizes(str(folder)) == model_sizes(name) == PACKAGED[name].sizes
