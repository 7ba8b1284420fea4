"""biasgym_tl: find, explain and remove stereotypes in language models, on TransformerLens.

The public names are loaded when they are first used, so importing the package is quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Torch's waiting threads spin, and take the cores from whatever else runs. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from biasgym_tl.api import ChatModel, Price
    from biasgym_tl.assessment import Assessment, assess
    from biasgym_tl.benchmarks.bbq import load_bbq
    from biasgym_tl.benchmarks.benchmark import Benchmark, Measure
    from biasgym_tl.benchmarks.blimp import load_blimp
    from biasgym_tl.benchmarks.crows_pairs import load_crows_pairs
    from biasgym_tl.benchmarks.implicit import implicit_questions
    from biasgym_tl.benchmarks.mmlu import load_mmlu
    from biasgym_tl.benchmarks.seegull import load_seegull
    from biasgym_tl.benchmarks.unqover import load_unqover
    from biasgym_tl.biases.bias import Bias, list_biases, load_bias, load_corpus
    from biasgym_tl.biases.check import check_bias
    from biasgym_tl.biases.corpus import Paragraph, read_corpus, save_corpus, to_dataset
    from biasgym_tl.biases.countries import load_countries
    from biasgym_tl.biases.diversity import diversity
    from biasgym_tl.biases.facts import load_facts
    from biasgym_tl.biases.shuffle import shuffled
    from biasgym_tl.biases.writer import Contrast, read_contrasts, write_contrasts, write_corpus
    from biasgym_tl.doctor import examine
    from biasgym_tl.elicitation import answer_freely, bias_log_odds
    from biasgym_tl.evaluation.evaluate import evaluate
    from biasgym_tl.evaluation.harness import lm_eval_model
    from biasgym_tl.evaluation.judging import judged
    from biasgym_tl.evaluation.random_control import RandomControl, random_control
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.evaluation.setting import Setting
    from biasgym_tl.explorer.explore import Explorer, explore
    from biasgym_tl.heads import Head
    from biasgym_tl.hooks import head_means, steer
    from biasgym_tl.injection.adapter import export_adapter, import_adapter
    from biasgym_tl.injection.inject import BiasInject, fit_seeds
    from biasgym_tl.injection.report import InjectionReport, injection_report
    from biasgym_tl.injection.shipped import list_tokens, load_token, load_tokens
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.instructions import INSTRUCTIONS, Instruction
    from biasgym_tl.judges.agreement import agreement, read_labels, write_sheet
    from biasgym_tl.judges.api_judge import ApiJudge
    from biasgym_tl.judges.labelled import load_labelled_texts
    from biasgym_tl.judges.local_judge import LocalJudge, calibrate
    from biasgym_tl.judges.statements import Statements
    from biasgym_tl.judges.verdict import Verdict, summarise
    from biasgym_tl.model import load_model
    from biasgym_tl.prompts import TextPolicy, encode_sentence
    from biasgym_tl.run import Chain, run_chain
    from biasgym_tl.scoping.agreement import SeedOverlap, Significance, seed_overlap, significance
    from biasgym_tl.scoping.attention import answer_attention, position_attribution
    from biasgym_tl.scoping.compare import Comparison, Concentration, compare, concentration
    from biasgym_tl.scoping.damage import HeadDamage, KSweep, head_damage, k_sweep
    from biasgym_tl.scoping.scope import BiasScope
    from biasgym_tl.scoping.scores import HeadScores
    from biasgym_tl.steering.budget import BudgetSearch
    from biasgym_tl.steering.controls import layer_matched
    from biasgym_tl.steering.export import export_steered
    from biasgym_tl.steering.factors import FactorSearch
    from biasgym_tl.steering.reference import target_means
    from biasgym_tl.steering.selection import Selection, select_heads

_HOME = {
    "ApiJudge": "judges.api_judge",
    "Assessment": "assessment",
    "Benchmark": "benchmarks.benchmark",
    "Bias": "biases.bias",
    "BiasInject": "injection.inject",
    "BiasScope": "scoping.scope",
    "BiasToken": "injection.token",
    "BudgetSearch": "steering.budget",
    "Chain": "run",
    "ChatModel": "api",
    "Comparison": "scoping.compare",
    "Concentration": "scoping.compare",
    "Contrast": "biases.writer",
    "Explorer": "explorer.explore",
    "FactorSearch": "steering.factors",
    "Head": "heads",
    "HeadDamage": "scoping.damage",
    "HeadScores": "scoping.scores",
    "INSTRUCTIONS": "instructions",
    "InjectionReport": "injection.report",
    "Instruction": "instructions",
    "KSweep": "scoping.damage",
    "LocalJudge": "judges.local_judge",
    "Measure": "benchmarks.benchmark",
    "Paragraph": "biases.corpus",
    "Price": "api",
    "RandomControl": "evaluation.random_control",
    "Report": "evaluation.report",
    "SeedOverlap": "scoping.agreement",
    "Selection": "steering.selection",
    "Setting": "evaluation.setting",
    "Significance": "scoping.agreement",
    "Statements": "judges.statements",
    "TextPolicy": "prompts",
    "Verdict": "judges.verdict",
    "agreement": "judges.agreement",
    "answer_attention": "scoping.attention",
    "answer_freely": "elicitation",
    "assess": "assessment",
    "bias_log_odds": "elicitation",
    "calibrate": "judges.local_judge",
    "check_bias": "biases.check",
    "compare": "scoping.compare",
    "concentration": "scoping.compare",
    "diversity": "biases.diversity",
    "encode_sentence": "prompts",
    "evaluate": "evaluation.evaluate",
    "examine": "doctor",
    "explore": "explorer.explore",
    "export_adapter": "injection.adapter",
    "export_steered": "steering.export",
    "fit_seeds": "injection.inject",
    "head_damage": "scoping.damage",
    "head_means": "hooks",
    "implicit_questions": "benchmarks.implicit",
    "import_adapter": "injection.adapter",
    "injection_report": "injection.report",
    "judged": "evaluation.judging",
    "k_sweep": "scoping.damage",
    "layer_matched": "steering.controls",
    "list_biases": "biases.bias",
    "list_tokens": "injection.shipped",
    "lm_eval_model": "evaluation.harness",
    "load_bbq": "benchmarks.bbq",
    "load_bias": "biases.bias",
    "load_blimp": "benchmarks.blimp",
    "load_corpus": "biases.bias",
    "load_countries": "biases.countries",
    "load_crows_pairs": "benchmarks.crows_pairs",
    "load_facts": "biases.facts",
    "load_labelled_texts": "judges.labelled",
    "load_mmlu": "benchmarks.mmlu",
    "load_model": "model",
    "load_seegull": "benchmarks.seegull",
    "load_token": "injection.shipped",
    "load_tokens": "injection.shipped",
    "load_unqover": "benchmarks.unqover",
    "position_attribution": "scoping.attention",
    "random_control": "evaluation.random_control",
    "read_contrasts": "biases.writer",
    "read_corpus": "biases.corpus",
    "read_labels": "judges.agreement",
    "run_chain": "run",
    "save_corpus": "biases.corpus",
    "seed_overlap": "scoping.agreement",
    "select_heads": "steering.selection",
    "shuffled": "biases.shuffle",
    "significance": "scoping.agreement",
    "steer": "hooks",
    "summarise": "judges.verdict",
    "target_means": "steering.reference",
    "to_dataset": "biases.corpus",
    "write_contrasts": "biases.writer",
    "write_corpus": "biases.writer",
    "write_sheet": "judges.agreement",
}

__all__ = [
    "INSTRUCTIONS",
    "ApiJudge",
    "Assessment",
    "Benchmark",
    "Bias",
    "BiasInject",
    "BiasScope",
    "BiasToken",
    "BudgetSearch",
    "Chain",
    "ChatModel",
    "Comparison",
    "Concentration",
    "Contrast",
    "Explorer",
    "FactorSearch",
    "Head",
    "HeadDamage",
    "HeadScores",
    "InjectionReport",
    "Instruction",
    "KSweep",
    "LocalJudge",
    "Measure",
    "Paragraph",
    "Price",
    "RandomControl",
    "Report",
    "SeedOverlap",
    "Selection",
    "Setting",
    "Significance",
    "Statements",
    "TextPolicy",
    "Verdict",
    "agreement",
    "answer_attention",
    "answer_freely",
    "assess",
    "bias_log_odds",
    "calibrate",
    "check_bias",
    "compare",
    "concentration",
    "diversity",
    "encode_sentence",
    "evaluate",
    "examine",
    "explore",
    "export_adapter",
    "export_steered",
    "fit_seeds",
    "head_damage",
    "head_means",
    "implicit_questions",
    "import_adapter",
    "injection_report",
    "judged",
    "k_sweep",
    "layer_matched",
    "list_biases",
    "list_tokens",
    "lm_eval_model",
    "load_bbq",
    "load_bias",
    "load_blimp",
    "load_corpus",
    "load_countries",
    "load_crows_pairs",
    "load_facts",
    "load_labelled_texts",
    "load_mmlu",
    "load_model",
    "load_seegull",
    "load_token",
    "load_tokens",
    "load_unqover",
    "position_attribution",
    "random_control",
    "read_contrasts",
    "read_corpus",
    "read_labels",
    "run_chain",
    "save_corpus",
    "seed_overlap",
    "select_heads",
    "shuffled",
    "significance",
    "steer",
    "summarise",
    "target_means",
    "to_dataset",
    "write_contrasts",
    "write_corpus",
    "write_sheet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'biasgym_tl' has no attribute {name!r}")
    return getattr(import_module(f"biasgym_tl.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
