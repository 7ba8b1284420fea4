"""What only a TransformerBridge can run, and a user's own: exact, or refused by the identity that
fails. Everything that both engines share is tested by the other files, run on both."""

import pytest
import torch
import transformers as hf
from conftest import LLAMA, VOCAB, tiny_hf_model
from transformers.cache_utils import DynamicCache

from biasgym_tl import BiasScope, Head, HeadScores, load_bias, load_model, load_token, steer
from biasgym_tl.batches import empty_cache
from biasgym_tl.doctor import examine
from biasgym_tl.errors import ModelError, SettingError
from biasgym_tl.injection.token import weights_fingerprint
from biasgym_tl.lens import ENGINE, attention_weight, check_kind, embedding, replaced_weight
from biasgym_tl.scoping.direct import direct_attribution

bridge_alone = pytest.mark.skipif(
    ENGINE != "bridge", reason="TransformerLens 3 is installed, whose engine is HookedTransformer"
)
SIZES = {**LLAMA, "vocab_size": VOCAB, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
TYPES = {
    "stablelm": (hf.StableLmConfig, SIZES),
    "qwen3_moe": (hf.Qwen3MoeConfig, {**SIZES, "head_dim": 8, **EXPERTS}),
    "smollm3": (hf.SmolLM3Config, SIZES),
    "starcoder2": (hf.Starcoder2Config, SIZES),
    "olmo": (hf.OlmoConfig, SIZES),
    "olmo3": (hf.Olmo3Config, SIZES),
    "phi3": (hf.Phi3Config, SIZES),
    "nemotron": (hf.NemotronConfig, SIZES),
    "exaone4": (hf.Exaone4Config, {**SIZES, "sliding_window": 7}),
}  # fmt: skip
"""Types that HookedTransformer does not have, or that only TransformerLens's own list loads."""
REFUSED = {
    "cohere": (hf.CohereConfig, SIZES, "unembedded final residual = logits must hold"),
    "granite": (hf.GraniteConfig, {**SIZES, "logits_scaling": 4.0}, "final residual = logits"),
    "mamba": (
        hf.MambaConfig,
        {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2},
        "attention with an output projection in every layer",
    ),
}
LATE = load_bias("late")
SEQUENCES, B, N = [[1, 5, 9, 200, 30], [7, 8, 300, 12, 9, 44]], [3, 4], [8, 9]


def random_model(kind, sizes):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(kind(**sizes)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1 and name.endswith("weight")))
    return model


@pytest.mark.parametrize(("engine", "other"), [(ENGINE, {"hooked", "bridge"} - {ENGINE})])
def test_the_engine_is_the_one_that_is_installed(engine, other):
    load_model(tiny_hf_model("llama"), engine=engine)
    with pytest.raises(SettingError, match="TransformerLens that is installed.*pip install"):
        load_model("anything", engine=other.pop())
    with pytest.raises(SettingError, match="engine must be one of"):
        load_model("anything", engine="vllm")


def test_a_map_says_which_engine_made_it(model, tmp_path):
    found = BiasScope(n_targets=2).attribute(model, LATE, None, progress=False)
    assert HeadScores.load(found.save(tmp_path / "map")).versions["engine"] == ENGINE


@bridge_alone
@pytest.mark.parametrize("kind", TYPES)
def test_types_that_only_the_bridge_has_pass_the_doctor(kind, tokenizer):
    model = load_model(random_model(*TYPES[kind]), tokenizer=tokenizer)
    checks = examine(model, LATE)
    assert [str(check) for check in checks if check.required and not check.passed] == []


@bridge_alone
@pytest.mark.parametrize("kind", [k for k in TYPES if k != "olmo"])  # no scale can be set there
def test_each_of_their_heads_equals_what_the_logits_lose(kind):
    """With the scale of the final norm as it was: linear in what a head writes."""
    model = load_model(random_model(*TYPES[kind]))
    layer, last = model.cfg.n_layers - 1, torch.tensor([SEQUENCES[0]])
    parts = direct_attribution(model, SEQUENCES[:1], torch.tensor(B[:1]), torch.tensor(N[:1]))
    _, cache = model.run_with_cache(last)
    scale = cache["ln_final.hook_scale"]
    norm = getattr(model.blocks[layer], "ln1_post", None)
    frozen = {"ln_final.hook_scale": scale}
    if norm is not None:
        frozen[f"blocks.{layer}.ln1_post.hook_scale"] = cache[f"blocks.{layer}.ln1_post.hook_scale"]
    mlp = cache[f"blocks.{layer}.hook_mlp_out"]
    hooks = [(name, lambda value, hook, kept=kept: kept) for name, kept in frozen.items()]
    hooks.append((f"blocks.{layer}.hook_mlp_out", lambda value, hook: mlp))

    def delta():
        with model.hooks(fwd_hooks=hooks):
            logits = model(last)[0, -1]
        return (logits[B[0]] - logits[N[0]]).item()

    whole = delta()
    for head in range(4):
        with steer(model, [(layer, head)]):
            lost = whole - delta()
        assert lost == pytest.approx(parts.heads[0, layer, head].item(), abs=2e-4)


@bridge_alone
@pytest.mark.parametrize("kind", TYPES)
def test_one_number_anywhere_changes_their_fingerprint(kind):
    """In experts and joint projections too."""
    model = load_model(random_model(*TYPES[kind]))
    found = {weights_fingerprint(model)}
    parameters = [p for name, p in model.named_parameters() if ".qkv." not in name]
    for parameter in parameters:
        parameter.data[(0,) * parameter.ndim] += 1
        found.add(weights_fingerprint(model))
    assert len(found) == len(parameters) + 1


@bridge_alone
@pytest.mark.parametrize("kind", REFUSED)
def test_what_fails_an_identity_is_refused_by_its_name(kind):
    config, sizes, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message):
        load_model(random_model(config, sizes))


def boot(hf_model, tokenizer, **options):
    from transformer_lens.model_bridge import TransformerBridge

    hf_model.config.architectures = [type(hf_model).__name__]
    tokenizer = hf.AutoTokenizer.from_pretrained(tokenizer)  # it reads one again from its folder
    return TransformerBridge.boot_transformers(
        "tiny", hf_model=hf_model, tokenizer=tokenizer, **options
    )


@bridge_alone
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_users_own_bridge_is_taken_as_it_is(family, tiny_folder):
    theirs = boot(tiny_hf_model(family), tiny_folder)
    ours = load_model(tiny_hf_model(family), tokenizer=tiny_folder)
    tokens = torch.tensor(SEQUENCES[:1])
    before = theirs(tokens)
    with pytest.raises(ModelError, match="Pass it to load_model first"):
        check_kind(theirs)
    taken = load_model(theirs)
    assert taken is theirs and taken.cfg.d_vocab == VOCAB
    assert torch.equal(taken(tokens), before)
    assert torch.allclose(embedding(taken), embedding(ours))
    one, other = (
        direct_attribution(m, SEQUENCES, torch.tensor(B), torch.tensor(N)) for m in (taken, ours)
    )
    assert torch.allclose(one.heads, other.heads, atol=1e-5)
    assert load_model(taken) is taken


@bridge_alone
def test_a_bridge_with_folded_weights_is_refused(tiny_folder):
    folded = boot(tiny_hf_model("llama"), tiny_folder)
    folded.enable_compatibility_mode()
    with pytest.raises(ModelError, match="with its own weights.*no_processing=True"):
        load_model(folded)
    raw = boot(tiny_hf_model("llama"), tiny_folder)
    raw.enable_compatibility_mode(no_processing=True)
    parts = direct_attribution(load_model(raw), SEQUENCES, torch.tensor(B), torch.tensor(N))
    assert parts.error().max() < 1e-5


@bridge_alone
def test_a_cache_that_is_not_read_is_found_at_load(monkeypatch):
    """As with transformers 5.24, under which the bridge's attention leaves the cache empty."""
    from transformers.cache_utils import DynamicLayer

    def unread(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        return keys, values

    monkeypatch.setattr(DynamicLayer, "update", unread)
    with pytest.raises(ModelError, match="cached = uncached must hold.*transformers!=5.24"):
        load_model(tiny_hf_model("llama"))


@pytest.mark.parametrize("name", ["W_O", "W_Q"])
def test_other_weights_of_a_layer_are_used_and_given_back(main_model, name):
    tokens = torch.tensor(SEQUENCES[:1])
    before, old = main_model(tokens), attention_weight(main_model, 1, name)
    others = old.roll(1, 0)
    with replaced_weight(main_model, 1, name, others):
        assert torch.equal(attention_weight(main_model, 1, name), others)
        assert (main_model(tokens) - before).abs().max() > 1e-3
    assert torch.equal(main_model(tokens), before)


def test_a_text_is_run_in_part_and_with_a_cache_as_its_tokens_are(model):
    text = "People from Peru are"
    tokens = model.to_tokens(text)
    for options in ({}, {"stop_at_layer": 3}, {"stop_at_layer": 1}):
        assert torch.equal(model(text, **options), model(tokens, **options))
        assert torch.equal(model(tokens[0], **options), model(tokens, **options))
    several = model([text, "My friends"], padding_side="left", stop_at_layer=3)
    assert torch.allclose(several[1, -1], model("My friends", stop_at_layer=3)[0, -1], atol=1e-4)
    cache = empty_cache(model, 1)
    model("People from", past_kv_cache=cache)
    rest = model(" Peru are", past_kv_cache=cache, prepend_bos=False)
    assert torch.allclose(rest[0, -1], model(tokens)[0, -1], atol=1e-4)


@pytest.mark.parametrize("stop", [0, 1, 3, -1])
def test_a_run_that_is_kept_or_hooked_stops_where_a_run_stops(model, stop):
    tokens = torch.tensor(SEQUENCES[:1])
    wanted = model(tokens, stop_at_layer=stop)
    found, cache = model.run_with_cache(tokens, stop_at_layer=stop)
    assert torch.equal(found, wanted)
    assert torch.equal(model.run_with_hooks(tokens, stop_at_layer=stop), wanted)
    kept = [f"blocks.{layer}.hook_resid_pre" in cache for layer in range(3)]
    assert kept == [layer < stop % 4 - (stop < 0) for layer in range(3)]
    assert model(tokens).shape[-1] == VOCAB and "forward" not in vars(model)


def test_a_run_can_start_after_the_last_layer_or_be_counted_from_it(model):
    tokens = torch.tensor(SEQUENCES[:1])
    wanted = model(tokens)
    for layer in (3, -1):
        resid = model(tokens, stop_at_layer=layer)
        assert torch.allclose(model(resid, start_at_layer=layer), wanted, atol=1e-4)


@bridge_alone
def test_a_part_that_is_none_is_refused_and_what_is_asked_of_one_is_done(model):
    tokens = torch.tensor(SEQUENCES[:1])
    resid = model(tokens, stop_at_layer=2)
    for options in ({"start_at_layer": 2, "stop_at_layer": 1}, {"start_at_layer": 4}):
        with pytest.raises(ModelError, match="must be in order and at most 3"):
            model(resid, **options)
    with pytest.raises(ModelError, match="given as past_kv_cache"):
        model(resid, start_at_layer=2, past_key_values=DynamicCache())
    options = {"return_type": "loss", "loss_per_token": True}
    found = model(tokens, past_kv_cache=empty_cache(model, 1), **options)
    assert torch.allclose(found, model(tokens, **options), atol=1e-5)


@bridge_alone
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_a_cast_leaves_rotary_positions_as_they_are(tiny, family):
    """In bf16 and back the weights are rounded, and nothing else, wherever in a text."""
    cast, rounded = tiny(family), tiny_hf_model(family)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
    tokens = torch.arange(200)[None] * 37 % VOCAB
    cast.to(torch.bfloat16).to(torch.float32)
    assert (cast(tokens) - rounded(tokens).logits).abs().max() < 1e-3


TOP_TEN = {
    "L22H8": 0.837281, "L27H4": 0.329495, "L27H1": 0.308872, "L25H6": 0.254104, "L22H6": 0.222515,
    "L29H1": 0.204895, "L20H2": 0.197146, "L15H5": 0.190347, "L26H0": 0.187429, "L21H3": 0.186626,
}  # fmt: skip
"""As HookedTransformer of TransformerLens 3.9 finds them on SmolLM2; all heads sum to 4.02488."""


@pytest.mark.real_model
def test_the_map_of_the_real_model_is_the_same_on_both_engines(smollm2):
    scope = BiasScope(contrast="difference")
    found = scope.attribute(smollm2, LATE, load_token("late"), progress=False)
    assert [str(head) for head in found.top(10)] == list(TOP_TEN)
    for head, value in TOP_TEN.items():
        assert found.values[Head.parse(head)] == pytest.approx(value, abs=1e-4)
    assert found.values.sum().item() == pytest.approx(4.02488, abs=1e-4)
