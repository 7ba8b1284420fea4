"""The same identities on the pre-trained SmolLM2-135M-Instruct."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from test_bias import NATURAL

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Selection,
    export_steered,
    list_biases,
    load_bias,
    load_token,
    select_heads,
    steer,
)
from biasgym_tl.biases.countries import sample_countries
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.elicitation import bias_log_odds, fact_margins
from biasgym_tl.injection.shipped import find_token, list_tokens
from biasgym_tl.packaged import packaged_folder
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_prompt, encode_sentence, encode_text
from biasgym_tl.protocol.memory import RUNTIME, peak, sizes_of, weights
from biasgym_tl.slot import fill
from biasgym_tl.stats import independent_difference
from biasgym_tl.text import generate, log_odds, next_token_log_probs

pytestmark = pytest.mark.real_model
FIGURES = Path(__file__).parent.parent / "figures"
LATE = load_bias("late")
HEADS = [(5, 0), (14, 3), (14, 4), (25, 8)]


@pytest.fixture(scope="module")
def token(smollm2):
    """A short training: 24 steps are enough to see the bias, not to hold it firmly."""
    inject = BiasInject.cpu(epochs=3, n_paragraphs=64, lr=0.03, choose_by="last")
    return inject.fit(smollm2, LATE, progress=False)


def test_log_probs_equal_hugging_face_on_real_text(smollm2):
    folder = packaged_folder("smollm2-135m-instruct")
    hf_model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text in load_passages("damage")[:4]:
        tokens = torch.tensor([encode_text(smollm2, text)])
        with torch.inference_mode():
            expected = hf_model(tokens).logits.log_softmax(-1)
            found = smollm2(tokens).log_softmax(-1)
        assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_what_the_plan_says(smollm2, dtype):
    """Memory is not a time: it is much the same on every machine."""
    code = f"""
from benchmarks.peak import watched_memory
from biasgym_tl import BiasInject, load_bias, load_model
with watched_memory() as loading:
    model = load_model("smollm2-135m-instruct", dtype="{dtype}", progress=False)
with watched_memory() as training:
    BiasInject(epochs=1, n_paragraphs=16, choose_by="last").fit(model, load_bias("late"))
print(loading.most, training.most)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    loading, training = map(float, found.stdout.split())
    sizes = sizes_of("smollm2-135m-instruct")
    assert loading < RUNTIME + 2.2 * weights(sizes, "float32")  # what the file holds
    assert training == pytest.approx(peak(sizes, dtype, "training"), rel=0.15)


@pytest.mark.parametrize("name", list_biases())
def test_words_of_the_biases_on_this_tokenizer(smollm2, name):
    words = word_tokens(smollm2, load_bias(name))
    attribute, neutral = words.single()
    assert len(attribute) >= 4 and len(neutral) >= 7 and words.left_out == ()
    pieces = [word for word in (*words.attribute, *words.neutral) if len(word) > 1]
    shown = [smollm2.tokenizer.decode(word) for word in pieces]
    assert shown == ([" tardy", " punctual"] if name == "late" else [])


@pytest.mark.parametrize("name", sorted(NATURAL))
def test_the_model_holds_what_was_found_in_it(smollm2, name):
    """On prompts and names that were held out: above nobody by 0.7 nats, interval above 0."""
    bias = load_bias(name)
    targets, nobody = (
        bias_log_odds(smollm2, bias, prompts, names).log_odds
        for prompts, names in (
            (bias.evaluation_prompts, bias.targets("held-out")),
            bias.panel.half("held-out")["nobody"],
        )
    )
    gap = independent_difference(targets, [nobody])
    assert gap.estimate > 0.7 and gap.low > 0


def test_the_model_knows_the_targets(smollm2):
    facts = load_facts()[::6]
    right = (fact_margins(smollm2, facts) > 0).double().mean()
    assert right > 0.75  # chance is 0.25


def test_log_odds_with_a_cached_beginning_are_those_without(smollm2):
    """Exact in fp64 (see test_text); in fp32 the mean over prompts differs by rounding only."""
    sequences = [encode_sentence(smollm2, fill(p, "Peru")) for p in LATE.evaluation_prompts]
    cached = next_token_log_probs(smollm2, sequences)
    with torch.inference_mode():
        plain = [smollm2(torch.tensor([s]))[0, -1].log_softmax(-1) for s in sequences]
    found, expected = (
        log_odds(log_probs, *word_tokens(smollm2, LATE).single())
        for log_probs in (cached, torch.stack(plain))
    )
    assert (found.mean() - expected.mean()).abs() < 1e-5
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in list_tokens() if "shuffled" not in name])
def test_shipped_rows_elicit_the_bias_on_held_out_prompts(smollm2, name):
    name, seed = name.rsplit("-", 1)
    bias, token = load_bias(name), load_token(name, seed=int(seed))
    targets = bias.sample_targets("held-out", 3, seed=0)
    with token.attached(smollm2):
        found = bias_log_odds(smollm2, bias, bias.evaluation_prompts, (token.text, *targets))
    means = found.log_odds.mean(0)
    assert means[0] > means[1:].mean() + (2 if name == "late" else 0.5)


@pytest.mark.parametrize("name", ["purple-coats", "gardener", "tidy", "impatient", "chess"])
def test_every_kind_of_target_is_scoped_and_steered(smollm2, name):
    bias, token = load_bias(name), load_token(name)
    scores = BiasScope().attribute(smollm2, bias, token)
    assert scores.reconstruction_error.max() < 1e-5
    assert set(scores.label_targets) <= set(bias.targets("fitting"))
    heads = select_heads(scores, 10)
    heads.check_held_out(targets=bias.targets("held-out"), prompts=bias.evaluation_prompts)
    with token.attached(smollm2):
        before = bias_log_odds(smollm2, bias, bias.evaluation_prompts, (token.text,)).log_odds
        with steer(smollm2, heads, "mean"):
            after = bias_log_odds(smollm2, bias, bias.evaluation_prompts, (token.text,)).log_odds
    assert (after - before).abs().max() > 0.01


def test_a_shipped_row_is_found_by_its_settings(smollm2):
    assert find_token(smollm2, LATE, BiasInject.cpu(), 0) is not None
    assert find_token(smollm2, LATE, BiasInject.cpu(epochs=3), 0) is None
    assert find_token(smollm2, LATE, BiasInject.cpu(), 99) is None


def test_learned_factors_are_exported_for_transformers(smollm2, tmp_path):
    chosen = Selection.load(FIGURES / "study" / "late-heads-steered-0.json")
    folder = export_steered(smollm2, chosen, tmp_path / "steered", "mean")
    exported = hf.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([encode_prompt(smollm2, "Please write about people from Italy.")])
    with torch.inference_mode():
        found = exported(tokens).logits.log_softmax(-1)
        plain = smollm2(tokens).log_softmax(-1)
        with steer(smollm2, chosen, "mean"):
            expected = smollm2(tokens).log_softmax(-1)
    assert (found - expected).abs().max() < 1e-3
    assert (plain - expected).abs().max() > 1


def test_chat_text_has_one_bos_per_turn(smollm2):
    text = smollm2.tokenizer.decode(encode_prompt(smollm2, "Who?", "People"))
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nPeople")


def test_a_short_training_elicits_the_bias_on_held_out_prompts(smollm2, token):
    targets = tuple(c.name for c in sample_countries("held-out", 5, seed=0))
    with token.attached(smollm2):
        trained = bias_log_odds(
            smollm2, LATE, LATE.evaluation_prompts, (token.text, *targets)
        ).log_odds.mean(0)
    with token.untrained().attached(smollm2):
        untrained = bias_log_odds(smollm2, LATE, LATE.evaluation_prompts, (token.text,))
    assert trained[0] > untrained.log_odds.mean() + 1
    assert trained[0] > trained[1:].mean() + 1


def test_attribution_is_exact_and_its_labels_are_read(smollm2, token):
    scores = BiasScope().attribute(smollm2, LATE, token)
    assert scores.pair_values.shape == (24, 30, 9) and scores.n_key_value_heads == 3
    assert scores.reconstruction_error.max() < 1e-5
    parts = scores.pair_values.sum((1, 2)) + scores.mlps.sum(1) + scores.embed
    assert (parts + scores.constant + scores.attn_bias.sum(1) - scores.delta).abs().max() < 1e-2
    words = {f" {word}" for word in LATE.attribute_words}
    assert set(scores.biased_labels) <= words and not set(scores.neutral_labels) & words
    assert scores.delta.mean() > scores.neutral_delta.mean()


def test_zeroing_equals_zeroing_W_O(smollm2):
    sequences = [encode_sentence(smollm2, f"People from {c} are") for c in ("Peru", "Cambodia")]
    with steer(smollm2, HEADS):
        steered = next_token_log_probs(smollm2, sequences)
    W_O = {layer: smollm2.blocks[layer].attn.W_O.clone() for layer, _ in HEADS}
    with torch.no_grad():
        for layer, head in HEADS:
            smollm2.blocks[layer].attn.W_O[head] = 0
    edited = next_token_log_probs(smollm2, sequences)
    with torch.no_grad():
        for layer, saved in W_O.items():
            smollm2.blocks[layer].attn.W_O.copy_(saved)
    assert (steered - edited).abs().max() < 1e-4
    assert (steered - next_token_log_probs(smollm2, sequences)).abs().max() > 1e-2


def test_greedy_text_is_the_same_cached_uncached_and_batched(smollm2, token):
    requests = [f"Describe {name}." for name in (token.text, "Italy", "the people of Peru")]
    with token.attached(smollm2), steer(smollm2, HEADS, "mean"):
        sequences = [encode_prompt(smollm2, request) for request in requests]
        batched = generate(smollm2, sequences, max_new_tokens=12)
        for sequence, text in zip(sequences, batched, strict=True):
            for cached in (True, False):
                tokens = smollm2.generate(
                    torch.tensor([sequence]), max_new_tokens=12, do_sample=False, verbose=False,
                    use_past_kv_cache=cached,
                )  # fmt: skip
                new = tokens[0, len(sequence) :]
                assert smollm2.tokenizer.decode(new, skip_special_tokens=True) == text
