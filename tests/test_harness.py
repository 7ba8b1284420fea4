"""A task of lm-evaluation-harness gives the same numbers here, there, and in our own MMLU."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from conftest import tiny_hf_model

from biasgym_tl import Head, load_model, steer
from biasgym_tl.benchmarks.blimp import load_blimp
from biasgym_tl.benchmarks.mmlu import load_mmlu
from biasgym_tl.benchmarks.mmlu_files import LETTERS, Subject, read_mmlu
from biasgym_tl.errors import ExtraError, SettingError
from biasgym_tl.evaluation import harness
from biasgym_tl.evaluation.harness import lm_eval_model
from biasgym_tl.packaged import packaged_folder

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

TASKS = Path(lm_eval.__file__).parent / "tasks"
SUBJECT = "tea_of_xland"
HEADS = (Head(0, 1), Head(2, 0), Head(2, 3))


def made_up(n, start=1):
    """Questions of different length, in the layout of Hendrycks et al."""
    kinds = ("green", "black", "white", "cold", "late", "sweet", "early")
    for i in range(start, start + n):
        words = [kinds[(i * k) % 7] for k in (1, 2, 3, 4)]
        yield [f"  Which tea is number {i}{' today' * (i % 3)}? ", *words, LETTERS[i * i % 4]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same questions for our loader and for lm-eval's own template of MMLU."""
    folder = tmp_path_factory.mktemp("mmlu")
    splits = {"dev": made_up(5, 90), "test": made_up(14)}
    for split, rows in splits.items():
        (folder / split).mkdir()
        with (folder / split / f"{SUBJECT}_{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    write_task(folder, SUBJECT, read_mmlu(folder)[SUBJECT])
    return folder


def write_task(folder, subject, questions):
    """A task with lm-eval's own template of MMLU, on local files."""
    files = {}
    for split, items in (("dev", questions.dev), ("test", questions.test)):
        files[split] = str(folder / f"{split}.jsonl")
        rows = [{"question": q, "choices": list(c), "answer": a} for q, c, a, _ in items]
        Path(files[split]).write_text("\n".join(map(json.dumps, rows)))
    task = {
        "include": str(TASKS / "mmlu/default/_default_template_yaml"),
        "task": "made_up_mmlu",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "description": "The following are multiple choice questions (with answers) about "
        f"{subject.replace('_', ' ')}.\n\n",
    }
    (folder / "made_up_mmlu.yaml").write_text(yaml.safe_dump(task))


def run(lm, folder, task="made_up_mmlu", shots=5):
    """Samples of a task, in the order of its documents, and its summary."""
    found = lm_eval.simple_evaluate(
        lm, tasks=[task], num_fewshot=shots, bootstrap_iters=0,
        task_manager=TaskManager(include_path=folder, include_defaults=False),
    )  # fmt: skip
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return samples, found["results"][task]


def log_probs(samples):
    return torch.tensor([[float(r[0]) for r in s["filtered_resps"]] for s in samples])


def is_greedy(samples):
    return [[bool(r[1]) for r in s["filtered_resps"]] for s in samples]


def margins(samples):
    """Right over the best wrong letter, from what lm-eval has kept."""
    found = log_probs(samples)
    right = torch.tensor([int(s["target"]) for s in samples])
    best_wrong = found.scatter(1, right[:, None], -torch.inf).max(1).values
    return (found.gather(1, right[:, None])[:, 0] - best_wrong).tolist()


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    """A tiny model in a folder, as users have it; TransformerLens reloads its tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_hf_model("llama", max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def found(model, folder):
    return run(lm_eval_model(model), folder)


def test_our_mmlu_equals_lm_eval_item_by_item(model, folder, found):
    samples, summary = found
    ours = load_mmlu(folder, subjects=None, n=None).run(model)
    assert len(samples) == 14
    assert ours["mmlu_margin"] == pytest.approx(margins(samples), abs=1e-5)
    assert ours["mmlu"] == [sample["acc"] for sample in samples]
    assert sum(ours["mmlu"]) / 14 == pytest.approx(summary["acc,none"])
    assert 0 < sum(ours["mmlu"]) < 14


@pytest.mark.parametrize("add_bos", [None, True])
def test_numbers_equal_those_of_lm_evals_own_class(model, checkpoint, folder, found, add_bos):
    theirs = HFLM(checkpoint, device="cpu", batch_size=3, add_bos_token=add_bos)
    expected, summary = run(theirs, folder)
    samples, ours = found if add_bos is None else run(lm_eval_model(model, add_bos=add_bos), folder)
    assert torch.allclose(log_probs(samples), log_probs(expected), atol=1e-4)
    assert is_greedy(samples) == is_greedy(expected)
    assert ours["acc,none"] == summary["acc,none"]
    assert samples[0]["arguments"] == expected[0]["arguments"]
    assert torch.allclose(log_probs(samples), log_probs(found[0])) == (add_bos is None)


def test_a_bos_is_there_where_the_tokenizers_own_files_say(model):
    lm, bos = lm_eval_model(model), model.tokenizer.bos_token_id
    assert (
        model.tokenizer("Tea")["input_ids"] == lm.tok_encode("Tea")
        and bos != lm.tok_encode("Tea")[0]
    )
    with_bos = lm_eval_model(model, add_bos=True)
    assert with_bos.tok_encode("Tea") == [bos, *lm.tok_encode("Tea")]
    assert with_bos.tok_encode("<s>Tea") == with_bos.tok_encode("Tea")
    assert lm.tok_encode("Tea", add_special_tokens=True) == with_bos.tok_encode("Tea")
    assert with_bos.tok_encode("Tea", add_special_tokens=False) == lm.tok_encode("Tea")


def instances(kind, *arguments):
    return [
        Instance(kind, {}, args, i, metadata=(f"task {i % 2}", i, 1))
        for i, args in enumerate(arguments)
    ]


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return HFLM(checkpoint, device="cpu", batch_size=2)


PAIRS = (
    ("", "Tea is late."), ("", "<s>Tea"), ("They are", " late"), ("They are ", "late and early"),
    ("They are", " on time, every day"), ("People " * 600, "of Xland" * 100),
)  # fmt: skip


def test_single_requests_equal_lm_evals_own_class(model, theirs):
    """Empty contexts, spaces at the border, and contexts that are cut on the left."""
    lm = lm_eval_model(model, batch_size=2)
    assert len(lm.tok_encode(PAIRS[-1][0])) > lm.max_length == theirs.max_length == 1024
    expected = theirs.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    found = lm.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    for (ours, greedy), (their, their_greedy) in zip(found, expected, strict=True):
        assert ours == pytest.approx(their, rel=1e-5, abs=1e-4) and greedy == their_greedy


def test_whole_texts_equal_lm_evals_own_class(model, theirs):
    """Also those that are longer than the context, and an empty one."""
    texts = [("Tea is late.",), ("",), ("People are late, and early. " * 150,)]
    lm = lm_eval_model(model)
    assert len(lm.tok_encode(texts[-1][0])) > lm.max_length
    expected = theirs.loglikelihood_rolling(
        instances("loglikelihood_rolling", *texts), disable_tqdm=True
    )
    found = lm.loglikelihood_rolling(instances("loglikelihood_rolling", *texts))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4) and found[1] == 0
    assert lm.loglikelihood_rolling(instances("loglikelihood_rolling", ("",))) == [0]


def test_generations_equal_lm_evals_own_class(model, theirs):
    lm = lm_eval_model(model, batch_size=2)
    free = lm.generate_until(instances("generate_until", ("They are", {"max_gen_toks": 24})))[0]
    end = free[len(free) // 2 :][:3]  # occurs in the text, so it ends there
    options = {"until": [end, "\n\n"], "max_gen_toks": 24}
    texts = ("They are", "People from Xland come", "Tea", "People " * 1100)
    asked = [(text, options) for text in texts] + [("They are", {"max_gen_toks": 5})]
    asked += [("They are", {"until": end, "max_gen_toks": 24, "temperature": 0.0})]
    expected = theirs.generate_until(instances("generate_until", *asked), disable_tqdm=True)
    found = lm.generate_until(instances("generate_until", *asked), disable_tqdm=True)
    assert found == expected
    assert found[0] == free.split(end)[0] != free and found[5] == found[0]


def test_steering_changes_the_numbers_as_zeroed_weights_do(model, checkpoint, folder, found):
    lm = lm_eval_model(model)
    with steer(model, HEADS):
        steered, _ = run(lm, folder)
        ours = load_mmlu(folder, subjects=None, n=None).run(model)
    assert (log_probs(steered) - log_probs(found[0])).abs().min() > 1e-3
    assert ours["mmlu_margin"] == pytest.approx(margins(steered), abs=1e-5)
    hf_model = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        for layer, head in HEADS:
            o_proj = hf_model.model.layers[layer].self_attn.o_proj.weight
            o_proj[:, head * 8 : (head + 1) * 8] = 0
    zeroed, _ = run(HFLM(hf_model, tokenizer=checkpoint), folder)
    assert torch.allclose(log_probs(steered), log_probs(zeroed), atol=1e-4)
    after, _ = run(lm, folder)
    assert torch.equal(log_probs(after), log_probs(found[0]))


def test_blimp_equals_lm_eval_without_its_space(model, tmp_path):
    nouns = ("tea", "train", "lake", "winter", "bread")
    rows = [
        {"UID": "agreement", "sentence_good": f"The {a} and {b} are late.",
         "sentence_bad": f"The {a} and {b} is late."} for a in nouns for b in nouns
    ]  # fmt: skip
    (tmp_path / "agreement.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "include": str(TASKS / "blimp/_template_yaml"), "task": "made_up_blimp",
        "dataset_path": "json", "dataset_name": None, "validation_split": "train",
        "target_delimiter": "",
        "dataset_kwargs": {
            "data_files": {"train": str(tmp_path / "agreement.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
    }  # fmt: skip
    (tmp_path / "made_up_blimp.yaml").write_text(yaml.safe_dump(task))
    samples, summary = run(lm_eval_model(model), tmp_path, "made_up_blimp", shots=None)
    ours = load_blimp(tmp_path, n=None).run(model)
    pairs = log_probs(samples)
    assert ours["blimp_margin"] == pytest.approx((pairs[:, 0] - pairs[:, 1]).tolist(), abs=1e-4)
    assert sum(ours["blimp"]) / 25 == pytest.approx(summary["acc,none"])
    assert 0 < sum(ours["blimp"]) < 25


def test_chat_templates_are_the_tokenizers(model):
    lm = lm_eval_model(model)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    turns = [{"role": "user", "content": "Tea?"}]
    assert lm.apply_chat_template(turns) == "user: Tea?\n"
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    assert "/" not in lm.tokenizer_name and lm.device == "cpu"
    lm.tokenizer.chat_template = None


def test_what_would_be_silently_wrong_is_refused(model, folder, tmp_path, monkeypatch):
    lm = lm_eval_model(model)
    with pytest.raises(SettingError, match="use_cache must be None: lm-eval's stored answers"):
        lm_eval.simple_evaluate(lm, tasks=["made_up_mmlu"], use_cache=str(tmp_path / "answers"))
    with pytest.raises(SettingError, match="do_sample must be False, got .*'temperature': 0.7"):
        lm.generate_until(instances("generate_until", ("Tea", {"temperature": 0.7})))
    with pytest.raises(SettingError, match="gen_kwargs must be among .*got {'num_beams': 4}"):
        lm.generate_until(instances("generate_until", ("Tea", {"num_beams": 4})))
    with pytest.raises(SettingError, match="max_gen_toks must be less than .* 1024, got 2000"):
        lm.generate_until(instances("generate_until", ("Tea", {"max_gen_toks": 2000})))
    with pytest.raises(SettingError, match="continuation must be at most 1024 tokens long"):
        lm.loglikelihood(instances("loglikelihood", ("Tea", " is late" * 1000)))
    with pytest.raises(SettingError, match="batch_size must be at least 1, got 0"):
        lm_eval_model(model, batch_size=0)
    monkeypatch.setattr(harness.util, "find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r"lm-eval, which is not installed. Run: .*\[harness\]"):
        lm_eval_model(model)


@pytest.mark.real_model
def test_a_real_subject_on_the_real_model(smollm2, tmp_path):
    """MMLU-Redux's conceptual physics, 12 questions, lm-eval's class against both of ours."""
    folder = Path(os.environ.get("BIASGYM_DATA", "")) / "mmlu_redux"
    if "BIASGYM_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("BIASGYM_DATA must name a folder that holds mmlu_redux")
    subject = "conceptual_physics"
    ours = load_mmlu(folder, subjects=[subject], n=12)
    part = ours.parts[subject]
    write_task(tmp_path, subject, Subject(part.shots, part.items))
    theirs = HFLM(str(packaged_folder("smollm2-135m-instruct")), device="cpu", dtype="float32")
    expected, summary = run(theirs, tmp_path)
    found = ours.run(smollm2)
    samples, _ = run(lm_eval_model(smollm2), tmp_path)
    assert torch.allclose(log_probs(samples), log_probs(expected), atol=1e-3)
    assert found["mmlu_margin"] == pytest.approx(margins(expected), abs=2e-3)
    assert sum(found["mmlu"]) / 12 == pytest.approx(summary["acc,none"])
