"""Inside the context one more row; outside, bit for bit the model as it was."""

import pytest
import torch

from biasgym_tl.added_row import added_row
from biasgym_tl.errors import TokenError

NAME = "<BiasToken:test>"


@pytest.fixture
def row():
    return torch.randn(32, generator=torch.Generator().manual_seed(3))


def test_the_token_has_the_next_id_of_a_padded_vocabulary(main_model, row):
    assert len(main_model.tokenizer) < main_model.cfg.d_vocab
    with added_row(main_model, row, NAME) as token_id:
        assert token_id == 1024
        ids = main_model.tokenizer(f"People from {NAME} are late")["input_ids"]
        assert ids.count(1024) == 1 and max(ids) == 1024
        assert torch.equal(main_model.W_E[1024], row)
        assert main_model.W_U.shape[1] == 1024


def test_the_space_before_the_token_belongs_to_it(model, row):
    with added_row(model, row, NAME) as token_id:
        spaced = model.tokenizer(f"from {NAME} are")["input_ids"]
        at = spaced.index(token_id)
        assert model.tokenizer.decode(spaced[:at]) == "from"
        assert model.tokenizer.decode(spaced[at + 1 :]) == " are"


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored_also_after_an_error(main_model, row, fails):
    model = main_model
    W_E, tokenizer, d_vocab = model.embed.W_E, model.tokenizer, model.cfg.d_vocab
    weights = {name: p.clone() for name, p in model.named_parameters()}
    attributes, vocab = set(vars(model)), tokenizer.get_vocab()
    try:
        with added_row(model, row, NAME):
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert model.embed.W_E is W_E and model.tokenizer is tokenizer
    assert model.cfg.d_vocab == d_vocab and set(vars(model)) == attributes
    assert model.tokenizer.get_vocab() == vocab
    assert {n for n, _ in model.named_parameters()} == set(weights)
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def test_the_row_is_what_the_model_reads(model, row):
    """A token whose row is a country's embedding gives that country's logits."""
    (italy,) = model.tokenizer(" Italy")["input_ids"]
    expected = model(torch.tensor([[5, italy, 9]]))
    with added_row(model, model.W_E[italy], NAME) as token_id:
        found = model(torch.tensor([[5, token_id, 9]]))
        again, cache = model.run_with_cache(torch.tensor([[5, token_id, 9]]))
    assert torch.equal(found, expected) and torch.equal(again, expected)
    assert torch.equal(cache["hook_embed"][0, 1], model.W_E[italy])


def test_contexts_nest(model, row):
    with added_row(model, row, NAME) as first, added_row(model, row * 2, NAME + "2") as second:
        assert (first, second) == (1024, 1025)
        assert torch.equal(model.W_E[second], row * 2)
    assert model.cfg.d_vocab == 1024 and "generate" not in vars(model)


def test_generates_with_and_without_cache(model, row):
    with added_row(model, row, NAME):
        texts = {
            cached: model.generate(
                f"People from {NAME}", max_new_tokens=8, do_sample=False, verbose=False,
                use_past_kv_cache=cached, stop_at_eos=False,
            )
            for cached in (True, False)
        }  # fmt: skip
    assert texts[True] == texts[False] and len(texts[True]) > len("People from ")


def test_calls_that_would_index_the_missing_column_are_refused(model, row):
    with added_row(model, row, NAME) as token_id:
        tokens = torch.tensor([[5, token_id, 9]])
        with pytest.raises(TokenError, match='return_type must be "logits"'):
            model(tokens, return_type="loss")
        with pytest.raises(TokenError, match=r"freq_penalty must be 0 .* got 0.5"):
            model.generate(tokens, freq_penalty=0.5, verbose=False)
        for token in (token_id, NAME, torch.tensor([3, token_id])):
            with pytest.raises(TokenError, match="must have a column of W_U"):
                model.tokens_to_residual_directions(token)
        # Without the token they work as ever.
        assert model(torch.tensor([[5, 6, 9]]), return_type="loss").isfinite()
        assert model.tokens_to_residual_directions(7).shape == (32,)


def test_misfits_are_refused(model, row):
    with pytest.raises(TokenError, match="d_model = 32 numbers, got 5"):
        added_row(model, row[:5], NAME).__enter__()
    with pytest.raises(TokenError, match="must be new to the tokenizer, got 'late'"):
        model.tokenizer.add_tokens(["late"])
        added_row(model, row, "late").__enter__()


def test_a_tokenizer_larger_than_the_model_is_refused(tiny, row):
    model = tiny()
    model.tokenizer.add_tokens([f"<|extra-{i}|>" for i in range(60)])
    with pytest.raises(TokenError, match="use the tokenizer that belongs to this model"):
        added_row(model, row, NAME).__enter__()
