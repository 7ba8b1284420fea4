"""One text around a request: arguments, a fixed date, system prompts, no stray space."""

import warnings

import pytest
import torch
from conftest import FAMILIES, sentencepiece, tiny_hf_model

from biasgym_tl import BiasInject, BiasScope, answer_freely, explore, load_bias, load_model
from biasgym_tl.errors import ModelError, SettingError, TokenError
from biasgym_tl.prompts import (
    TextPolicy,
    Turn,
    encode_answer,
    encode_prompt,
    encode_sentence,
    encode_text,
    policy_fingerprint,
)

LATE = load_bias("late")
QUICK = BiasInject(epochs=1, n_paragraphs=8, batch_size=4, choose_by="last")
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
ANSWER = "{% if add_generation_prompt %}[assistant]{% endif %}"
THINKING = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
)
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}"
    "</s>{% endfor %}"
)


def loaded(tokenizer, chat_template, family="llama", **policy):
    model = load_model(tiny_hf_model(family), tokenizer=tokenizer, text=TextPolicy(**policy))
    model.tokenizer.chat_template = chat_template
    return model


def written(model, request="Say it.", answer="", history=()):
    return model.tokenizer.decode(encode_prompt(model, request, answer, history))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gpt_neox", "olmo2"])
def test_a_template_set_in_memory_is_the_one_used(tokenizer, family):
    model = loaded(tokenizer, PLAIN + ANSWER, family)
    assert written(model, answer="Well") == "[user]Say it.</s>[assistant]Well"


def test_thinking_is_off_unless_it_is_wanted(tokenizer):
    assert written(loaded(tokenizer, PLAIN + ANSWER + THINKING)).endswith("]<think></think>")
    on = loaded(tokenizer, PLAIN + ANSWER + THINKING, template={"enable_thinking": True})
    assert written(on).endswith("[assistant]")


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%B"])
def test_a_template_that_writes_todays_date_gets_a_fixed_one(tokenizer, form):
    import datetime

    template = f"\n[{{{{ strftime_now('{form}') }}}}]" + PLAIN + ANSWER
    model = loaded(tokenizer, template, date="2020-02-29")
    day = datetime.date(2020, 2, 29).strftime(form)
    assert written(model) == f"\n[{day}][user]Say it.</s>[assistant]"
    by_variable = "{% set f = '%d' %}{{ strftime_now(f) }}" + PLAIN
    assert written(loaded(tokenizer, by_variable)).startswith("2024-07-26[user]")


def test_a_system_prompt_has_its_turn_or_begins_the_request(tokenizer):
    with_turn = loaded(tokenizer, PLAIN + ANSWER, system="Be kind.")
    assert written(with_turn) == "[system]Be kind.</s>[user]Say it.</s>[assistant]"
    without = loaded(tokenizer, NO_SYSTEM + PLAIN + ANSWER, system="Be kind.")
    assert written(without) == "[user]Be kind.\n\nSay it.</s>[assistant]"
    dropped = PLAIN.replace("%}[", "%}{% if m.role != 'system' %}[").replace(
        "</s>", "</s>{% endif %}"
    )
    assert "Be kind.\n\nSay it." in written(loaded(tokenizer, dropped, system="Be kind."))
    plain = loaded(tokenizer, None, system="Be kind.")
    assert written(plain, history=[Turn("A?", "B.")]) == "<s>Be kind.\nA?\nB.\nSay it.\n"


def test_plain_text_on_request(tokenizer):
    model = loaded(tokenizer, PLAIN + ANSWER, chat=False)
    assert written(model, answer="Well") == "<s>Say it.\nWell"


def test_templates_that_want_lists_of_parts_get_them(tokenizer):
    model = loaded(tokenizer, PARTS + ANSWER)
    assert written(model, history=[Turn("A?", "B.")]) == (
        "[user]A?</s>[assistant]B.</s>[user]Say it.</s>[assistant]"
    )


def test_named_templates(tokenizer):
    only = loaded(tokenizer, {"chat": PLAIN + ANSWER})
    assert written(only) == "[user]Say it.</s>[assistant]"
    several = {"rag": "never", "chat": PLAIN + ANSWER}
    with pytest.raises(ModelError, match=r"no default.*TextPolicy\(template="):
        written(loaded(tokenizer, several))
    chosen = loaded(tokenizer, several, template={"chat_template": "chat"})
    assert written(chosen) == "[user]Say it.</s>[assistant]"


@pytest.mark.parametrize("template", ["nothing", "{{ messages[0].nothing() }}", "{% if %}"])
def test_a_template_that_cannot_write_the_request_is_refused(tokenizer, template):
    with pytest.raises(ModelError, match="chat template must write a user's request"):
        written(loaded(tokenizer, template))


def test_settings_that_no_template_can_have():
    with pytest.raises(SettingError, match="date must be like '2024-07-26', got 'today'"):
        TextPolicy(date="today")
    with pytest.raises(SettingError, match=r"arguments of the chat template, got \['messages'\]"):
        TextPolicy(template={"messages": []})
    with pytest.raises(SettingError, match="values that JSON can"):
        TextPolicy(template={"tool": print})


def test_a_row_is_refused_under_another_text(tokenizer):
    model = loaded(tokenizer, PLAIN + ANSWER)
    token = QUICK.fit(model, LATE, progress=False)
    scores = BiasScope().attribute(model, LATE, token)
    same = loaded(tokenizer, PLAIN + ANSWER, date="2000-01-01")  # the template writes no date
    with token.attached(same):
        pass
    for policy in ({"system": "Be kind."}, {"chat": False}):
        other = loaded(tokenizer, PLAIN + ANSWER, **policy)
        with pytest.raises(TokenError, match="text around a request of the model must be"):
            token.attached(other)
        with pytest.raises(SettingError, match="write the text around requests as it did"):
            explore(BiasScope().attribute(model, LATE, None), other)
    assert policy_fingerprint(same) == policy_fingerprint(model)
    assert scores.settings["text"]["chat"] is True


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma"])
def test_an_answer_follows_as_the_template_would_write_it(family):
    """Mistral's form: no generation prompt, a space before the assistant's answer."""
    mistral = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} "
        "[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    tokenizer = sentencepiece(chat_template=mistral)
    model = load_model(tiny_hf_model(family), tokenizer=tokenizer)
    turns = [{"role": "user", "content": "Say it."}]
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": "People are late"}], tokenize=False
    )
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [*encode_prompt(model, "Say it.", "People are late"), tokenizer.eos_token_id] == ids
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert (
        encode_prompt(model, "Say it.") == (tokenizer(asked, add_special_tokens=False)["input_ids"])
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "qwen2", "gpt2", "opt"])
def test_what_follows_the_token_is_what_follows_a_country(family):
    model = load_model(tiny_hf_model(family), tokenizer=sentencepiece())
    token = QUICK.fit(model, LATE, progress=False)
    for text in ("People from {} are never", "({}) is", "{}'s people", "From\n{} on", "{}, {}"):
        neutral = encode_sentence(model, text.format("Peru", "Peru"))
        name = encode_answer(model, "Peru"), encode_answer(model, " Peru")
        with token.attached(model) as new:
            biased = encode_sentence(model, text.format(token.text, token.text))
        expected = list(neutral)
        for pieces in (name[1], name[0]):
            while any(expected[i : i + len(pieces)] == pieces for i in range(len(expected))):
                i = next(i for i in range(len(expected)) if expected[i : i + len(pieces)] == pieces)
                expected[i : i + len(pieces)] = [new]
        assert biased == expected, (text, model.tokenizer.convert_ids_to_tokens(neutral))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox", "opt", "bloom"])
def test_text_with_a_token_that_has_no_row_is_refused(tokenizer, family):
    import copy

    larger = copy.deepcopy(tokenizer)
    larger.add_tokens([f"<|{i}|>" for i in range(25)])
    larger.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    model = load_model(tiny_hf_model(family), tokenizer=larger)
    assert max(encode_sentence(model, "See <|3|> and <|4|>")) < model.cfg.d_vocab
    for text in ("See <image_soft_token> here", "<|24|>"):
        with pytest.raises(ModelError, match="text must hold no token that the model has no row"):
            encode_sentence(model, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_bos_gets_none_in_front(tokenizer, family):
    import copy

    without = copy.deepcopy(tokenizer)
    without.bos_token = None
    model = load_model(tiny_hf_model(family), tokenizer=without)
    ids = tokenizer("People", add_special_tokens=False)["input_ids"]
    assert encode_text(model, "People") == ids == model.to_tokens("People")[0].tolist()
    assert model.tokenizer.bos_token is None
    assert torch.isfinite(model(encode_and_stack(model))).all()


def encode_and_stack(model):
    return torch.tensor([encode_sentence(model, "People are")])


@pytest.mark.parametrize("text", ["<BiasToken:math>", "<bias_token>", "<BIAS TOKEN 1>"])
def test_a_token_that_is_not_attached_is_told_with_the_remedy(model, text):
    late = QUICK.fit(model, LATE, progress=False)
    with late.attached(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_sentence(model, f"People from {late.text} are")
    for encode in (encode_text, encode_sentence, encode_answer):
        with pytest.warns(UserWarning, match="no such BiasToken is attached. Call this within"):
            encode(model, f"People from {late.text} are")
    with late.attached(model), pytest.warns(UserWarning, match=f"'{text}' is read as ordinary"):
        answer_freely(model, ["Tell me about {target}."], [text], max_new_tokens=1)
