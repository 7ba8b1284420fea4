"""What people bring loads as Hugging Face has it, or is one error that says what to do; no code of
a folder is run on the way."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
import transformers as hf
from conftest import FAMILIES, hooked_alone, sentencepiece, tiny_config, tiny_hf_model
from tokenizers import Tokenizer
from transformers.integrations import hub_kernels

from biasgym_tl import (
    BiasInject,
    BiasScope,
    BudgetSearch,
    FactorSearch,
    bias_log_odds,
    evaluate,
    explore,
    export_steered,
    load_bias,
    load_model,
    load_token,
    standard_conditions,
    steer,
    target_means,
)
from biasgym_tl.biases.corpus import as_paragraphs
from biasgym_tl.errors import BiasGymError, ModelError, SettingError, SteeringError
from biasgym_tl.families import convert
from biasgym_tl.hooks import head_means
from biasgym_tl.lens import ENGINE, weights_dtype
from biasgym_tl.model import TOLERANCES
from biasgym_tl.prompts import encode_answer, encode_sentence, encode_text
from biasgym_tl.scoping.damage import head_damage
from biasgym_tl.text import (
    answer_differences,
    generate,
    mean_loss,
    next_token_log_probs,
    read_continuations,
)

LATE = load_bias("late")
LONG = dataclasses.replace(
    LATE,
    scoping_prompts=("late " * 2048 + "{target} is",),
    corpus=as_paragraphs(["late " * 2048 + "{target}."]),
)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
SIX = ["llama", "gpt2", "gemma3_text", "gpt_neox", "opt", "bloom"]


@torch.inference_mode()
def log_probs(model):
    out = model(IDS)
    return getattr(out, "logits", out).float().log_softmax(-1)


def far(a, b):
    return (log_probs(a) - log_probs(b)).abs().max().item()


@pytest.fixture
def folder(tmp_path, tokenizer):
    path = tmp_path / "model"
    tiny_hf_model("llama").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# --- tokenizers -----------------------------------------------------------------------------


def test_the_tokenizer_handed_over_is_the_one_used(tokenizer, folder):
    """Its added tokens and template, its class and what it puts in front are those in memory."""
    mine = hf.AutoTokenizer.from_pretrained(folder)
    mine.add_tokens([" late"])
    mine.chat_template = "mine"
    model = load_model(tiny_hf_model("llama"), tokenizer=mine)
    assert model.tokenizer(" late", add_special_tokens=False)["input_ids"] == [len(tokenizer)]
    assert model.tokenizer.chat_template == "mine" and type(model.tokenizer) is type(mine)
    assert model.tokenizer is not mine and model.tokenizer.get_vocab() == mine.get_vocab()
    assert model.tokenizer.encode("") == mine.encode("")


@pytest.mark.parametrize("family", SIX)
def test_a_folder_that_is_gone_is_no_problem(family, tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "gone")
    mine = hf.AutoTokenizer.from_pretrained(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    model = load_model(tiny_hf_model(family), tokenizer=mine)
    assert far(model, tiny_hf_model(family)) < 1e-3
    assert encode_text(model, "late")[-1:] == tokenizer("late")["input_ids"][-1:]


def test_a_tokenizer_by_folder_or_name(folder):
    for given in (folder, str(folder)):
        model = load_model(tiny_hf_model("gpt2"), tokenizer=given)
        assert encode_answer(model, " late") == encode_answer(load_model(folder), " late")
    with pytest.raises(ModelError, match="'nobody/nothing' must hold a tokenizer"):
        load_model(tiny_hf_model("llama"), tokenizer="nobody/nothing")
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"got a Tokenizer\. .*PreTrainedTokenizerFast"):
        load_model(tiny_hf_model("llama"), tokenizer=raw)


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_prefix_space_settings_survive(tokenizer, tmp_path, add_prefix_space):
    from tokenizers import pre_tokenizers

    mine = copy.deepcopy(tokenizer)
    mine.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space
    )
    model = load_model(tiny_hf_model("gpt2"), tokenizer=mine)
    assert model.tokenizer.tokenize("late") == mine.tokenize("late")
    assert encode_answer(model, " late") == tokenizer(" late")["input_ids"]


def test_a_tokenizer_that_puts_bos_in_front_gives_one_bos(tokenizer):
    from tokenizers.processors import TemplateProcessing

    mine = copy.deepcopy(tokenizer)
    mine.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    model = load_model(tiny_hf_model("llama"), tokenizer=mine)
    assert encode_text(model, "late").count(0) == 1
    assert model.to_tokens("late").tolist() == [encode_text(model, "late")]
    assert model.to_tokens("late", prepend_bos=False).tolist() == [encode_answer(model, "late")]


# --- weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_training_mode_is_compared_in_evaluation_mode(family, tokenizer):
    dropped = {"gpt2": "attn_pdrop", "gptj": "attn_pdrop", "gpt_neo": "attention_dropout",
               "bloom": "attention_dropout"}.get(family, "attention_dropout")  # fmt: skip
    hf_model = tiny_hf_model(family, **{dropped: 0.4}).train()
    model = load_model(hf_model, tokenizer=tokenizer)
    assert hf_model.training and far(model, hf_model.eval()) < 1e-3
    assert model.loading.share < 1e-5 < model.loading.tolerance == TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", SIX)
def test_every_dtype_loads_from_every_dtype(family, dtype, tmp_path, tokenizer):
    hf_model, rounded = tiny_hf_model(family).to(dtype), tiny_hf_model(family)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(dtype))
    assert far(load_model(hf_model, tokenizer=tokenizer), rounded) < 1e-3
    hf_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert far(load_model(tmp_path), rounded) < 1e-3
    low = load_model(tmp_path, dtype=dtype)
    assert weights_dtype(low) == dtype and low.loading.share <= low.loading.tolerance


def test_the_tolerance_can_be_chosen_and_is_kept(folder):
    if ENGINE == "hooked":  # a bridge runs Hugging Face's own modules
        with pytest.raises(ModelError, match=r"within a share 1e-12 of their spread.*tolerance="):
            load_model(folder, tolerance=1e-12)
    assert load_model(folder, tolerance=0.5).loading.tolerance == 0.5
    with pytest.raises(SettingError, match="tolerance must be a positive number, got 0"):
        load_model(folder, tolerance=0.0)


@hooked_alone
def test_a_slightly_wrong_norm_is_noticed(monkeypatch):
    known = convert.FAMILIES
    right = known["llama"].settings
    wrong = known["llama"]._replace(settings=lambda c: {**right(c), "eps": 1e-3})
    monkeypatch.setitem(known, "llama", wrong)
    with pytest.raises(ModelError, match="log-probabilities must equal Hugging Face's"):
        load_model(tiny_hf_model("llama"))


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "save model._orig_mod instead"),
        (lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k}, "3 missing"),
        (lambda w: {**w, "score.weight": torch.ones(2, 32)}, "classifier or reward model"),
        (lambda w: {**w, "v_head.summary.weight": torch.ones(1, 32)}, "reward model"),
        (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, "missing .'lm_head.w"),
        (lambda w: {**w, "lm_head.weight": torch.ones(7, 32)}, "must hold"),
        (lambda w: {**w, "model.layers.0.self_attn.q_proj.lora_A": torch.ones(2)}, "1 not known"),
    ],
)
def test_checkpoints_with_other_weights_than_the_models_are_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_buffers_of_older_checkpoints_are_no_weights(folder):
    rewrite(folder, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert far(load_model(folder), tiny_hf_model("llama")) < 1e-3


def test_a_tied_classifier_is_no_language_model(tmp_path, tokenizer):
    """Its head would not be missing: it would be the embedding."""
    config = tiny_config("llama", tie_word_embeddings=True, pad_token_id=0)
    hf.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\['score.weight'\].*classifier|ForSequenceCl"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", SIX)
def test_models_without_a_head_are_refused(family, tokenizer):
    base = hf.AutoModel.from_config(tiny_config(family))
    with pytest.raises(ModelError, match="no language model's head. Load it with AutoModelForCau"):
        load_model(base, tokenizer=tokenizer)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "gemma3_text", "qwen3"])
def test_an_adapter_must_be_merged(family, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapter = LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(tiny_hf_model(family), adapter).eval()
    merged = log_probs(model)
    for given in (model, model.base_model, model.get_base_model()):
        with pytest.raises(ModelError, match=r"model = model.merge_and_unload\(\)"):
            load_model(given, tokenizer=tokenizer)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="got a PEFT adapter in"):
        load_model(tmp_path)
    loaded = load_model(model.merge_and_unload(), tokenizer=tokenizer)
    assert (log_probs(loaded) - merged).abs().max() < 1e-3


def test_quantized_weights_are_refused(folder, tokenizer):
    codes = tiny_hf_model("llama")
    codes.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.ones(48, 32, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ModelError, match="got quantized ones. Load the original"):
        load_model(codes, tokenizer=tokenizer)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="got quantized ones in"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_in_memory_are_refused(tokenizer, dtype):
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(tiny_config("llama"))
    with pytest.raises(ModelError, match="must be in memory, got tensors on the meta device"):
        load_model(model, tokenizer=tokenizer, dtype=dtype)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, at torch.compile
def test_compiled_models_and_other_things(tokenizer):
    hf_model = tiny_hf_model("llama")
    assert far(load_model(torch.compile(hf_model), tokenizer=tokenizer), hf_model) < 1e-3
    with pytest.raises(ModelError, match=r"without a configuration .*model.module"):
        load_model(torch.nn.DataParallel(hf_model), tokenizer=tokenizer)
    model = load_model(hf_model)
    if ENGINE == "bridge":
        assert load_model(model) is model
    else:
        with pytest.raises(ModelError, match="HookedTransformer needs no loading"):
            load_model(model)
    with pytest.raises(ModelError, match="must be a name, a folder or a Hugging Face model"):
        load_model(5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "gpt_neox", "opt", "bloom"])
def test_resized_embeddings(family, tokenizer):
    hf_model = tiny_hf_model(family)
    hf_model.resize_token_embeddings(1030)
    model = load_model(hf_model, tokenizer=tokenizer)
    assert model.cfg.d_vocab == model.cfg.d_vocab_out == 1030 and far(model, hf_model) < 1e-3


# --- safety ---------------------------------------------------------------------------------


def evil(folder, name):
    """A folder whose files name Python beside them, which leaves a mark when it runs."""
    mark = folder.parent / "ran"
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import ByT5Tokenizer as T, LlamaConfig as C, LlamaForCausalLM as M\n"
    )
    path = folder / f"{name}.json"
    return mark, path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("tokenizer_config", {"tokenizer_class": "ByT5Tokenizer", "trust_remote_code": True,
                              "auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        ("tokenizer_config", {"tokenizer_class": "Unknown",
                              "auto_map": {"AutoTokenizer": [None, "evil.T"]}}),
        ("config", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}),
        ("config", {"trust_remote_code": True, "auto_map": {"AutoConfig": "evil.C",
                                                            "AutoModelForCausalLM": "evil.M"}}),
        ("config", {"attn_implementation": "somebody/a-kernel"}),
        ("config", {"_attn_implementation": "somebody/a-kernel"}),
        ("config", {"_attn_implementation": "paged|somebody/a-kernel"}),
        ("config", {"_attn_implementation": "flash_attention_2"}),
    ],
)  # fmt: skip
def test_no_code_of_a_folder_is_run_or_asked_for(folder, name, changed, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    asked = []
    monkeypatch.setattr(
        hub_kernels, "load_and_register_attn_kernel", lambda *a, **k: asked.append(a)
    )
    mark, path, values = evil(folder, name)
    path.write_text(json.dumps({**values, **changed}))
    try:
        model = load_model(folder)
    except ModelError as error:
        assert str(error)
    else:
        assert type(model.tokenizer).__module__.startswith("transformers.")
    assert not mark.exists() and not asked


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_not_read(folder, name):
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return open, (str(folder / "ran"), "w")

    torch.save({"a": Evil()}, folder / name)
    with pytest.raises(ModelError, match="must be .safetensors.*Pickled weights can run code"):
        load_model(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-100]
        ),
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100),
        lambda f: (f / "config.json").write_text("[]"),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe"),
        lambda f: (f / "config.json").write_text('{"model_type": 5}'),
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "tokenizer.json").write_text("{}"),
        lambda f: (f / "tokenizer_config.json").write_text("[]"),
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        lambda f: (f / "config.json").write_text(
            (f / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": "x"')
        ),
    ],
)
def test_broken_folders_are_one_error(folder, spoil):
    spoil(folder)
    try:
        model = load_model(folder)
    except BiasGymError as error:
        assert str(folder) in str(error) or "must" in str(error)
    else:
        assert far(model, tiny_hf_model("llama")) < 1e-3


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="must hold config.json and weights"):
        load_model(tmp_path)


# --- other objects --------------------------------------------------------------------------


def processed(family, tokenizer):
    """As HookedTransformer.from_pretrained processes weights by default."""
    from transformer_lens import HookedTransformer

    raw = load_model(tiny_hf_model(family), tokenizer=tokenizer)
    model = HookedTransformer(copy.deepcopy(raw.cfg), raw.tokenizer)
    model.load_and_process_state_dict(
        raw.state_dict(), fold_ln=True, center_writing_weights=True, fold_value_biases=True,
        center_unembed=not (raw.cfg.output_logits_soft_cap or 0) > 0,
    )  # fmt: skip
    return raw, model.eval()


ENTRIES = {
    "inject": lambda model: BiasInject(epochs=1, choose_by="last").fit(model, LATE),
    "scope": lambda model: BiasScope().attribute(model, LATE, None),
    "steer": lambda model: steer(model, [(0, 1)]).__enter__(),
    "evaluate": lambda model: evaluate(
        model, LATE, standard_conditions(load_token("late"), [(0, 1)])
    ),
    "explore": lambda model: explore(load_scores(), model),
    "export": lambda model: export_steered(model, [(0, 1)], "never", source="x"),
}


def load_scores():
    model = load_model(tiny_hf_model("llama"), tokenizer=TOKENIZER)
    return BiasScope().attribute(model, LATE, None)


@hooked_alone
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "bloom", "phi", "qwen2"])
def test_folded_value_biases_are_refused_by_every_entry(family, entry, tokenizer, monkeypatch):
    monkeypatch.setitem(globals(), "TOKENIZER", tokenizer)
    _, model = processed(family, tokenizer)
    with pytest.raises(ModelError, match="value biases, but they are folded into b_O.*load_model"):
        ENTRIES[entry](model)


@hooked_alone
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma", "gemma2", "gemma3_text"])
def test_processed_models_without_value_biases_are_exact(family, tokenizer):
    """Folding norms and centring change no head: silencing one is what it is in the raw model."""
    raw, model = processed(family, tokenizer)
    with steer(raw, [(1, 2)]), steer(model, [(1, 2)]):
        assert far(raw, model) < 1e-3
    ours, theirs = (BiasScope().attribute(m, LATE, None) for m in (raw, model))
    assert ours.biased_labels == theirs.biased_labels
    assert (ours.values - theirs.values).abs().max() < 1e-3


@hooked_alone
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_norms_after_attention_that_were_folded_are_refused(tokenizer):
    raw, model = processed("olmo2", tokenizer)
    assert far(raw, model) > 0.1  # TransformerLens changes the model
    with pytest.raises(ModelError, match="norms of a Olmo2ForCausalLM must not be folded"):
        steer(model, [(1, 2)]).__enter__()


def test_other_kinds_of_models_are_refused_by_name():
    """In a process where annotations are not executed, as a user's."""
    code = """
import torch, transformers as hf, biasgym_tl as b, biasgym_tl.errors
class TransformerBridge(torch.nn.Module): pass
config = hf.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=2)
bias = b.load_bias("late")
entries = {
    "inject": lambda m: b.BiasInject(choose_by="last").fit(m, bias),
    "scope": lambda m: b.BiasScope().attribute(m, bias, None),
    "steer": lambda m: b.steer(m, [(0, 1)]).__enter__(),
    "evaluate": lambda m: b.evaluate(m, bias, b.standard_conditions(b.load_token("late"))),
    "explore": lambda m: b.explore(b.HeadScores.load(SCORES), m),
    "export": lambda m: b.export_steered(m, [(0, 1)], "never", source="x"),
    "log-odds": lambda m: b.bias_log_odds(m, bias, ["{target} is"], ["Peru"]),
}
for model in (hf.LlamaForCausalLM(config), TransformerBridge()):
    for name, entry in entries.items():
        try:
            entry(model)
        except b.errors.ModelError as error:
            print(name, error)
"""
    root = Path(__file__).parents[1]
    scores = next(root.glob("figures/**/map-direct*.safetensors"))
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code.replace("SCORES", repr(str(scores)))],
        capture_output=True, text=True,
    )  # fmt: skip
    lines = found.stdout.splitlines()
    assert len(lines) == 14, found.stdout + found.stderr
    assert all("got a transformers.LlamaForCausalLM. Pass it to load_model" in x for x in lines[:7])
    assert all("TransformerBridge. Pass" in line for line in lines[7:])


# --- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SIX)
def test_text_longer_than_the_context_is_refused_by_every_reader(tiny, family):
    model = tiny(family)
    n_ctx = model.cfg.n_ctx
    if family != "bloom":  # ALiBi has no end: its context is what it was trained on
        assert n_ctx == 256
    fits, long = [5] * n_ctx, [5] * (n_ctx + 1)
    assert next_token_log_probs(model, [fits]).isfinite().all()
    for read in (
        lambda: next_token_log_probs(model, [long, [5]]),
        lambda: read_continuations(model, [fits], [[5, 6]]),
        lambda: generate(model, [fits]),
        lambda: mean_loss(model, ["late " * (n_ctx + 1)]),
        lambda: head_means(model, [long]),
        lambda: BiasInject(epochs=1, choose_by="last").fit(model, LONG, progress=False),
        lambda: BiasScope().attribute(model, LONG, None),
        lambda: bias_log_odds(model, LATE, ["late " * n_ctx + "{target}"], ["Peru"]),
    ):
        with pytest.raises(ModelError, match=rf"context of {n_ctx} tokens, got \d+"):
            read()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox", "opt", "qwen2"])
def test_generation_ends_where_the_context_does(tiny, family):
    model = tiny(family)
    prompts = [[5, 6, 7], [5] * 250]
    model.tokenizer.eos_token = None
    together = generate(model, prompts, max_new_tokens=300)
    alone = [generate(model, [prompt], max_new_tokens=300)[0] for prompt in prompts]
    assert together == alone


def overflowing(family, layer=1):
    hf_model = tiny_hf_model(family)
    with torch.no_grad():
        for name, weight in hf_model.named_parameters():
            if f".{layer}.mlp" in name and weight.ndim == 2:
                weight *= 3000
    return hf_model


@pytest.mark.filterwarnings("ignore:.*overflow in torch.float16, so it could not")
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gptj", "gpt_neox", "phi"])
def test_overflow_is_an_error_that_names_dtype_and_layer(family, tokenizer):
    model = load_model(overflowing(family), tokenizer=tokenizer, dtype=torch.float16, exact=False)
    sequence = encode_sentence(model, "People are")
    for read in (
        lambda: next_token_log_probs(model, [sequence]),
        lambda: read_continuations(model, [sequence], [[5, 6]]),
        lambda: generate(model, [sequence], max_new_tokens=3),
        lambda: mean_loss(model, ["People are late."]),
        lambda: bias_log_odds(model, LATE, LATE.scoping_prompts[:1], ["Peru"]),
    ):
        with pytest.raises(ModelError, match=r"overflow in torch.float16 at layer 1\. Load"):
            read()


def test_an_overflow_while_loading_is_said(tokenizer):
    with pytest.warns(UserWarning, match="overflow in torch.float16, so it could not be compared"):
        model = load_model(
            overflowing("llama"), tokenizer=tokenizer, dtype=torch.float16, exact=False
        )
    assert model.loading.share != model.loading.share


def test_a_spoiled_tokenizer_of_sentencepiece_still_loads(tmp_path):
    sentencepiece().save_pretrained(tmp_path)
    model = load_model(tiny_hf_model("mistral"), tokenizer=tmp_path)
    assert model.tokenizer.tokenize("They are late")[-1] == "\u2581late"


# --- what a second look found ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_does_not_get_an_empty_one(family, tmp_path):
    tiny_hf_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="must hold a tokenizer beside the weights.*tokenizer="):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox", "opt", "gptj"])
@pytest.mark.parametrize("positions", [16, 32])
def test_short_contexts_load(family, positions, tokenizer):
    name = "n_positions" if family in ("gpt2", "gptj") else "max_position_embeddings"
    hf_model = tiny_hf_model(family, **{name: positions})
    assert far(load_model(hf_model, tokenizer=tokenizer), hf_model) < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of .*torch.float32.*got 'float8'"),
        ({"dtype": None}, "dtype must be one of"),
        ({"device": "gpu"}, "device must be one that torch can use here, got 'gpu'"),
        ({"device": "meta"}, "device must be one that torch can use here, got 'meta'"),
        ({"text": "be nice"}, "text must be a TextPolicy, got 'be nice'"),
        ({"tolerance": "0.1"}, "tolerance must be a positive number, got '0.1'"),
        ({"tolerance": float("nan")}, "tolerance must be a positive number, got nan"),
    ],
)
def test_settings_are_checked_before_anything_is_read(settings, message):
    with pytest.raises((SettingError, jaxtyping.TypeCheckError)) as error:
        load_model("nobody/nothing", **settings)
    assert re.search(message, str(error.value)) or "Type-check error" in str(error.value)


def test_a_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    model = load_model("~/model")
    assert model.source == str(folder)
    assert load_model(tiny_hf_model("llama"), tokenizer="~/model").tokenizer is not None


def test_weights_that_are_no_numbers_or_of_two_kinds_are_refused(tokenizer):
    spoiled = tiny_hf_model("llama")
    spoiled.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(ModelError, match="weights must be numbers, got NaN or inf"):
        load_model(spoiled, tokenizer=tokenizer)
    mixed = tiny_hf_model("llama")
    mixed.lm_head.bfloat16()
    with pytest.raises(ModelError, match=r"weights must be of one dtype.*model.to\(torch.float32"):
        load_model(mixed, tokenizer=tokenizer)


@pytest.mark.parametrize("shard", ["x.bin", "../outside.safetensors", "/etc/x.safetensors", 5])
def test_a_list_of_shards_names_files_beside_it(folder, shard):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="must list files beside it that end in .safetensors"):
        load_model(folder)


def test_sharded_weights_load(tmp_path, tokenizer):
    hf_model = tiny_hf_model("gpt_neox")
    hf_model.save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert far(load_model(tmp_path), hf_model) < 1e-3


def test_marks_without_a_row_are_refused(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens([f"<|{i}|>" for i in range(24)])
    other.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(ModelError, match="eos_token of the tokenizer must have a row.*got id 1024"):
        load_model(tiny_hf_model("llama"), tokenizer=other)


@hooked_alone
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_means_and_damage_of_folded_models_are_refused(tokenizer):
    _, model = processed("gpt2", tokenizer)
    for measure in (
        lambda: head_means(model),
        lambda: head_damage(model, mode="zero"),
        lambda: target_means(model, LATE),
        lambda: FactorSearch(n_steps=1).select(model, LATE, load_token("late")),
        lambda: BudgetSearch(k=1).select(model, LATE, load_token("late")),
    ):
        with pytest.raises(ModelError, match="value biases, but they are folded"):
            measure()


def test_means_of_what_is_no_list_of_texts_are_refused(tiny):
    with pytest.raises(SteeringError, match="texts must be a list of texts, got one: 'late'"):
        head_means(tiny(), "late")
    with pytest.raises(SteeringError, match="skip must be at least 0, got -1"):
        head_means(tiny(), ["late it is"], skip=-1)


@pytest.mark.filterwarnings("ignore:.*overflow in torch.float16, so it could not")
@pytest.mark.parametrize("family", ["llama", "gptj", "phi"])
def test_overflow_is_an_error_of_means_differences_and_training(family, tokenizer):
    model = load_model(overflowing(family), tokenizer=tokenizer, dtype=torch.float16, exact=False)
    ids = torch.tensor([5]), torch.tensor([6])
    for read in (
        lambda: answer_differences(model, [[5, 6, 7]], *ids),
        lambda: BiasInject(epochs=1, choose_by="last").fit(model, LATE, progress=False),
    ):
        with pytest.raises(ModelError, match="overflow in torch.float16 at layer 1"):
            read()
    with pytest.raises(SteeringError, match="reference must hold numbers, got NaN or inf"):
        steer(tiny_float(tokenizer), [(0, 1)], "mean", reference=torch.full((3, 4, 8), torch.nan)
              ).__enter__()  # fmt: skip


def tiny_float(tokenizer):
    return load_model(tiny_hf_model("llama"), tokenizer=tokenizer)
