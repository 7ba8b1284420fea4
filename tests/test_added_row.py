"""Inside the context one more row; outside, bit for bit the model as it was."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.normalizers import Lowercase

from biasgym_tl import load_bias
from biasgym_tl.added_row import added_row
from biasgym_tl.errors import ModelError, TokenError

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


def trained_tokenizer(vocab_size):
    """Byte-level BPE with as many words as can be had."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [paragraph.text for paragraph in load_bias("late").corpus]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet)
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe)


def test_words_without_a_row_are_refused(tiny, row):
    model = tiny()
    model.tokenizer = trained_tokenizer(1030)
    with pytest.raises(TokenError, match=r"no word beyond the 1024 rows .*, got 6 such as .*Use"):
        added_row(model, row, NAME).__enter__()


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("n_extra", [25, 60])
def test_a_tokenizer_may_have_added_tokens_without_a_row(tiny, row, special, n_extra):
    """Gemma-3's has one that only the model for images reads; a text that names it is split."""
    model = tiny()
    tokenizer = model.tokenizer
    plain = tokenizer("from <|extra-24|> late")["input_ids"]
    tokenizer.add_tokens([f"<|extra-{i}|>" for i in range(n_extra)], special_tokens=special)
    before = tokenizer.get_vocab()
    assert before["<|extra-24|>"] == 1024 == model.cfg.d_vocab
    with added_row(model, row, NAME) as token_id:
        assert model.tokenizer.convert_tokens_to_ids(NAME) == token_id == 1024
        assert max(model.tokenizer.get_vocab().values()) == 1024
        assert model.tokenizer(f"from{NAME}")["input_ids"][-1] == 1024
        assert model.tokenizer("from <|extra-24|> late")["input_ids"] == plain
        assert model.tokenizer("<|extra-3|>")["input_ids"] == [1003]  # a padded row, which it has
        with added_row(model, row, "<second>") as second:
            assert model.tokenizer(f"<second>{NAME}")["input_ids"] == [second, token_id]
    assert model.tokenizer is tokenizer and tokenizer.get_vocab() == before


def test_ids_may_have_gaps(tiny, row):
    model = tiny()
    words = {word: i for i, word in enumerate(["<s>", "late", "from"])} | {"Italy": 1011}
    level = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=level)
    with added_row(model, row, NAME):
        ids = model.tokenizer(f"from Italy {NAME} late")["input_ids"]
        assert ids == [2, 1011, 1024, 1] and model.tokenizer.decode([1011]) == "Italy"


def test_tokenizers_written_in_python_lose_their_rowless_tokens_too(tiny, row):
    model = tiny("llama", vocab_size=300)
    model.tokenizer = hf.ByT5Tokenizer()  # 259 bytes and marks, 125 added tokens

    def ids(text):
        return model.tokenizer(text, add_special_tokens=False)["input_ids"]

    known = ids("<extra_id_3>")
    with added_row(model, row, NAME) as token_id:
        assert ids(f"a {NAME}") == [100, 300] and ids("<extra_id_3>") == known
        found = ids("<extra_id_99>")
        assert token_id not in found and max(found) < 300
    assert len(model.tokenizer) == 384


@pytest.mark.parametrize(
    "text", ["", " ", "late ", " late", "late", "very late", " <T>", "<>", "< >", "a < b > c"]
)
def test_a_word_cannot_be_the_tokens_text(model, row, text):
    with pytest.raises(TokenError, match=r"text must be a mark that no other text holds|be new to"):
        added_row(model, row, text).__enter__()


def test_rows_are_left_in_the_order_last_in_first_out(model, row):
    """Left in another order, both rows stay until the last is left; then all is as it was."""
    W_E, tokenizer, attributes = model.embed.W_E, model.tokenizer, set(vars(model))
    first, second = added_row(model, row, NAME), added_row(model, row * 2, "<second>")
    first.__enter__()
    second.__enter__()
    with pytest.raises(TokenError, match=r"'<second>' must be left before '<BiasToken:test>'"):
        first.__exit__(None, None, None)
    assert model.cfg.d_vocab == 1026 and torch.equal(model.W_E[1024], row)
    second.__exit__(None, None, None)
    assert model.embed.W_E is W_E and model.tokenizer is tokenizer
    assert model.cfg.d_vocab == 1024 and set(vars(model)) == attributes


def test_a_model_cast_inside_is_cast_outside_too(model, row):
    """The same as if it had been cast before."""
    twin = copy.deepcopy(model).to(torch.float16).to(torch.float32)
    W_E = model.embed.W_E
    with added_row(model, row, NAME), added_row(model, row, "<second>"):
        model.to(torch.float16)
        assert model.W_E.dtype == torch.float16
        model.to(torch.float32)
    assert model.embed.W_E is W_E and torch.equal(W_E, twin.W_E)
    with added_row(model, row, NAME):
        model.to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.W_E.shape == (1024, 32)


def test_a_model_is_not_copied_while_it_has_a_row(model, row):
    with added_row(model, row, NAME), added_row(model, row, "<second>"):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(ModelError, match="model must not be copied or pickled while"):
                copied(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(torch.tensor([[5, 6]])), model(torch.tensor([[5, 6]])))


def test_two_threads_do_not_add_rows_to_one_model(model, row):
    def attach(text):
        with added_row(model, row, text) as token_id:
            return token_id

    with ThreadPoolExecutor(1) as pool:
        with added_row(model, row, NAME):
            error = pool.submit(attach, "<second>").exception()
            assert isinstance(error, ModelError) and model.cfg.d_vocab == 1025
            assert "one thread at a time, got one that is read with <BiasToken:test>" in str(error)
        assert pool.submit(attach, "<second>").result() == 1024


def test_the_extended_tokenizer_is_kept_until_either_has_changed(model):
    """Copying a large vocabulary takes seconds."""
    row = torch.ones(model.cfg.d_model)

    def attached(text="<x>"):
        with added_row(model, row, text) as token_id:
            assert model.tokenizer.convert_tokens_to_ids(text) == token_id
            return model.tokenizer

    first, own = attached(), model.tokenizer
    assert attached() is first and attached("<y>") is not first and model.tokenizer is own
    own.chat_template = "{{ messages[0]['content'] }}"
    second = attached()
    assert second is not first and second.chat_template == own.chat_template
    own.backend_tokenizer.normalizer = Lowercase()
    third = attached()
    assert third is not second and third.tokenize("LATE") == third.tokenize("late")
    third.chat_template = None  # a copy that was changed is not handed out again
    assert attached().chat_template == own.chat_template
    fourth = attached()
    fourth.add_tokens(["<mine>"])
    assert "<mine>" not in attached().get_vocab()
    own.add_tokens([AddedToken("<new>", lstrip=False)])
    fifth = attached()
    own.add_tokens([AddedToken("<new>", lstrip=True)])
    assert attached() is not fifth
