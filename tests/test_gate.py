"""An edit that acts after names leaves what stands before them, and what names none, as it was."""

import dataclasses

import pytest
import torch
from conftest import sentencepiece, tiny_hf_model
from jaxtyping import TypeCheckError

from biasgym_tl import BiasInject, BudgetSearch, Selection, load_bias, load_model, steer
from biasgym_tl.batches import answer_batches, cached_beginning, log_probs
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.elicitation import answer_freely, fact_margins
from biasgym_tl.errors import ModelError, SteeringError
from biasgym_tl.lens import ENGINE, Recording, final_resid, replayed
from biasgym_tl.prompts import encode_text
from biasgym_tl.protocol.stages import choice_record
from biasgym_tl.steering.export import check_exportable
from biasgym_tl.text import next_token_log_probs

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
NAMES = ["Peru", "New Zealand"]
HEADS = "L0H1, L1H2, L2H0"


@pytest.fixture(scope="module")
def model(tiny):
    return tiny()


def ids(model, text):
    return encode_text(model, text)


def resid(model, text):
    return final_resid(model, [ids(model, text)])[0]


@pytest.mark.parametrize("text", ["The train was late again", "People from Prussia and Zealand"])
def test_a_text_without_a_name_is_not_touched(model, text):
    before = resid(model, text)
    with steer(model, HEADS, after=NAMES):
        assert torch.equal(resid(model, text), before)


@pytest.mark.parametrize("name", NAMES)
def test_it_acts_from_the_end_of_the_first_name_on(model, name):
    text = f"Guests from {name} and from Peru were"
    start = len(ids(model, f"Guests from {name}")) - 1
    before = resid(model, text)
    with steer(model, HEADS, after=NAMES):
        after = resid(model, text)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [i < start for i in range(len(same))]


@pytest.mark.parametrize(("name", "text"), [("Peru", "Peru is"), ("old people", "Old people are")])
def test_a_name_at_the_beginning_of_a_text_counts(model, name, text):
    with steer(model, HEADS, after=[name]):
        steered = resid(model, text)
    assert not torch.equal(steered[-1], resid(model, text)[-1])


def test_where_all_is_after_a_name_it_is_steering(model):
    text = "People from Peru"
    first = [model.tokenizer.decode([ids(model, text)[0]])]
    with steer(model, HEADS):
        everywhere = resid(model, text)
    with steer(model, HEADS, after=first):
        assert torch.allclose(resid(model, text), everywhere)


def test_a_batch_of_one_is_a_batch_of_many_and_a_cached_beginning_changes_nothing(model):
    texts = ["Guests from Peru were often", "Guests from Peru came", "Guests from Rome", "Peru"]
    sequences = [ids(model, text) for text in texts]
    with steer(model, HEADS, after=NAMES):
        many = next_token_log_probs(model, sequences)
        single = torch.cat([log_probs(model, [s])[-1:] for s in sequences])
        shared = log_probs(model, sequences[:2], last=True)  # the name is in the cache
    assert torch.allclose(many, single, atol=1e-5)
    assert torch.allclose(shared, single[:2], atol=1e-5)


def test_a_name_across_the_end_of_the_cache_is_found(model):
    sequence = ids(model, "Guests from New Zealand were")
    for n in range(1, len(sequence)):
        with steer(model, HEADS, after=["New Zealand"]):
            whole = final_resid(model, [sequence])[0, -1]
            cache = cached_beginning(model, sequence[:n], 1)
            assert torch.allclose(
                final_resid(model, [sequence[n:]], cache=cache)[0, -1], whole, atol=1e-5
            )


def test_generation_with_a_cache_is_generation_without(model):
    request, targets = ["People from {target} are"] * 2, ["Peru", "Rome"]
    plain = answer_freely(model, request, targets, max_new_tokens=8)
    with steer(model, HEADS, after=NAMES):
        steered = answer_freely(model, request, targets, max_new_tokens=8)
        sequence = ids(model, "People from Peru")
        for _ in range(4):
            sequence = [*sequence, int(next_token_log_probs(model, [sequence])[0].argmax())]
        own = model.generate(
            torch.tensor([ids(model, "People from Peru")]),
            max_new_tokens=4,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
        )
    assert steered[1] == plain[1]
    assert own[0].tolist() == sequence


def test_facts_about_a_named_country_are_steered_and_others_are_not(model):
    facts = load_facts()[:12]
    named = next(fact.question.split(" of ")[-1].split(" is")[0] for fact in facts)
    before = fact_margins(model, facts)
    with steer(model, HEADS, after=[named]):
        after = fact_margins(model, facts)
    touched = [named in fact.question for fact in facts]
    assert any(touched) and not all(touched)
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == touched


def test_replayed_layers_see_the_names(model):
    sequences = [ids(model, f"Guests from {name} were") for name in ("Peru", "Rome", "Peru")]

    def run():
        return torch.cat([b.answers(model) for b in answer_batches(model, sequences)])

    recording = Recording([1])
    with replayed(model, recording, 1):
        run()
    with steer(model, "L1H2, L2H0", after=NAMES):
        direct = run()
        with replayed(model, recording, 1):
            assert torch.equal(run(), direct)


@pytest.mark.parametrize("named", [True, False])
def test_a_token_that_is_attached_later_is_a_name(model, named):
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    names = [token.text] if named else NAMES
    with steer(model, HEADS, after=names), token.attached(model):
        steered = resid(model, f"Guests from {token.text} were")
    with token.attached(model):
        plain = resid(model, f"Guests from {token.text} were")
    assert torch.equal(steered[0], plain[0]) and not torch.equal(steered[-1], plain[-1])


def test_the_model_is_left_as_it_was(model):
    before = resid(model, "Guests from Peru were")
    with pytest.raises(KeyError), steer(model, HEADS, after=NAMES):
        raise KeyError
    assert torch.equal(resid(model, "Guests from Peru were"), before)
    watched = [model.embed, *model.blocks]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in watched)


def test_what_acts_after_names_is_no_change_of_weights(model, tmp_path):
    found = dataclasses.replace(
        BudgetSearch(k=1, max_loss=99.0, max_facts=1.0).select(model, LATE, progress=False),
        after=("Peru",),
    )
    assert Selection.load(found.save(tmp_path / "heads.json")) == found
    with pytest.raises(SteeringError, match="must be changed everywhere to be exported"):
        check_exportable(found, found.model)


def test_what_it_cannot_know_is_refused(model):
    with (
        pytest.raises(SteeringError, match="after must be a list of names"),
        steer(model, HEADS, after="Peru"),
    ):
        pass
    cache = cached_beginning(model, ids(model, "Guests from Peru"), 1)
    with steer(model, HEADS, after=NAMES):
        with pytest.raises(ModelError, match="key-value cache must be made in the steering"):
            final_resid(model, [ids(model, "were")], cache=cache)
        with pytest.raises(ModelError, match="must be run from its tokens"):
            model(torch.zeros(1, 3, model.cfg.d_model), start_at_layer=1)


@pytest.mark.parametrize("text", ["I left. Old people are", "Old people are"])
def test_a_name_that_begins_a_sentence_counts_with_a_capital(model, text):
    prefixed = load_model(tiny_hf_model("llama"), tokenizer=sentencepiece())
    for each in (model, prefixed):
        before = resid(each, text)
        with steer(each, HEADS, after=["old people"]):
            after = resid(each, text)
        assert torch.equal(before[0], after[0]) and not torch.allclose(before[-1], after[-1])


@pytest.mark.parametrize("second", ["L0H2", "L1H1"])
def test_nested_gates_share_a_cache(model, second):
    with steer(model, "L0H1", after=["Peru"]), steer(model, second, after=["Rome"]):
        sequence = ids(model, "People from Peru and Rome were")
        whole = final_resid(model, [sequence])[0, -1]
        for n in range(1, len(sequence)):
            cache = cached_beginning(model, sequence[:n], 1)
            found = final_resid(model, [sequence[n:]], cache=cache)[0, -1]
            assert torch.allclose(found, whole, atol=1e-5)


def test_a_residual_stream_of_other_tokens_than_were_seen_last_is_refused(model):
    tokens = torch.tensor([ids(model, "People from Peru are")])
    with steer(model, "L1H1, L2H1", after=NAMES):
        for layer in (1, 2):
            made = model(tokens, stop_at_layer=layer)
            model(tokens + 1, stop_at_layer=layer)
            with pytest.raises(ModelError, match="must be run from its tokens"):
                model(made, start_at_layer=layer)
        # Without a cache generate embeds the last token alone and runs all of the residual stream.
        options = {"max_new_tokens": 3, "do_sample": False, "verbose": False}
        if ENGINE == "hooked":
            with pytest.raises(ModelError, match="use_past_kv_cache"):
                model.generate(tokens, use_past_kv_cache=False, **options)
        else:  # runs all tokens anew
            cached = model.generate(tokens, **options)
            assert torch.equal(model.generate(tokens, use_past_kv_cache=False, **options), cached)


def test_what_a_run_that_is_kept_has_seen_is_not_of_the_next(model):
    tokens = torch.tensor([ids(model, "People from Peru are")])
    with steer(model, "L2H1", after=NAMES):
        made = model(tokens + 1, stop_at_layer=2)
        # run_with_hooks of HookedTransformer does not call the model, so its end is not seen.
        runs = {
            "hooked": [model.run_with_cache],
            "bridge": [model.run_with_cache, model.run_with_hooks],
        }
        for run in runs[ENGINE]:
            run(tokens, stop_at_layer=1)
            with pytest.raises(ModelError, match="must be run from its tokens"):
                model(made, start_at_layer=2)


def test_a_row_that_is_not_attached_is_no_name_and_no_warning(model):
    before = resid(model, "Guests from Peru were")
    with steer(model, HEADS, after=["<BiasToken:late>"]):
        assert torch.equal(resid(model, "Guests from Peru were"), before)


@pytest.mark.parametrize("after", ["", 3, [None], [" "]])
def test_what_is_no_list_of_names_is_refused(model, after):
    with pytest.raises((SteeringError, TypeCheckError)), steer(model, HEADS, after=after):
        pass


def test_names_are_part_of_what_a_choice_is_known_by(model):
    found = BudgetSearch(k=1, max_loss=99.0, max_facts=1.0).select(model, LATE, progress=False)
    after = dataclasses.replace(found, after=("Peru",))
    assert choice_record(found) != choice_record(after)
    assert choice_record(after) != choice_record(dataclasses.replace(found, after=("Rome",)))
