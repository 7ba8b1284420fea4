"""biasgym_tl: find, explain and remove stereotypes in language models, on TransformerLens.

The public names are loaded when they are first used, so importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biasgym_tl.api import ChatModel, Price
    from biasgym_tl.biases.bias import Bias, list_biases, load_bias, load_corpus
    from biasgym_tl.biases.check import check_bias
    from biasgym_tl.biases.corpus import Paragraph, read_corpus, save_corpus, to_dataset
    from biasgym_tl.biases.countries import load_countries
    from biasgym_tl.biases.diversity import diversity
    from biasgym_tl.biases.facts import load_facts
    from biasgym_tl.biases.shuffle import shuffled
    from biasgym_tl.biases.writer import (
        Contrast,
        read_contrasts,
        with_contrasts,
        write_contrasts,
        write_corpus,
    )
    from biasgym_tl.evaluation.evaluate import Setting, evaluate
    from biasgym_tl.evaluation.random_control import RandomControl, random_control
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.heads import Head
    from biasgym_tl.hooks import head_means, steer
    from biasgym_tl.injection.adapter import export_adapter, import_adapter
    from biasgym_tl.injection.inject import BiasInject, fit_seeds
    from biasgym_tl.injection.report import InjectionReport, injection_report
    from biasgym_tl.injection.shipped import list_tokens, load_token
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.model import load_model
    from biasgym_tl.run import Chain, run_chain
    from biasgym_tl.scoping.scope import BiasScope
    from biasgym_tl.scoping.scores import HeadScores
    from biasgym_tl.steering.controls import layer_matched
    from biasgym_tl.steering.selection import Selection, select_heads

_HOME = {
    "Bias": "biases.bias",
    "BiasInject": "injection.inject",
    "BiasScope": "scoping.scope",
    "BiasToken": "injection.token",
    "Chain": "run",
    "ChatModel": "api",
    "Contrast": "biases.writer",
    "Head": "heads",
    "HeadScores": "scoping.scores",
    "InjectionReport": "injection.report",
    "Paragraph": "biases.corpus",
    "Price": "api",
    "RandomControl": "evaluation.random_control",
    "Report": "evaluation.report",
    "Selection": "steering.selection",
    "Setting": "evaluation.evaluate",
    "check_bias": "biases.check",
    "diversity": "biases.diversity",
    "evaluate": "evaluation.evaluate",
    "export_adapter": "injection.adapter",
    "fit_seeds": "injection.inject",
    "head_means": "hooks",
    "import_adapter": "injection.adapter",
    "injection_report": "injection.report",
    "layer_matched": "steering.controls",
    "list_biases": "biases.bias",
    "list_tokens": "injection.shipped",
    "load_bias": "biases.bias",
    "load_corpus": "biases.bias",
    "load_countries": "biases.countries",
    "load_facts": "biases.facts",
    "load_model": "model",
    "load_token": "injection.shipped",
    "random_control": "evaluation.random_control",
    "read_contrasts": "biases.writer",
    "read_corpus": "biases.corpus",
    "run_chain": "run",
    "save_corpus": "biases.corpus",
    "select_heads": "steering.selection",
    "shuffled": "biases.shuffle",
    "steer": "hooks",
    "to_dataset": "biases.corpus",
    "with_contrasts": "biases.writer",
    "write_contrasts": "biases.writer",
    "write_corpus": "biases.writer",
}

__all__ = [
    "Bias",
    "BiasInject",
    "BiasScope",
    "BiasToken",
    "Chain",
    "ChatModel",
    "Contrast",
    "Head",
    "HeadScores",
    "InjectionReport",
    "Paragraph",
    "Price",
    "RandomControl",
    "Report",
    "Selection",
    "Setting",
    "check_bias",
    "diversity",
    "evaluate",
    "export_adapter",
    "fit_seeds",
    "head_means",
    "import_adapter",
    "injection_report",
    "layer_matched",
    "list_biases",
    "list_tokens",
    "load_bias",
    "load_corpus",
    "load_countries",
    "load_facts",
    "load_model",
    "load_token",
    "random_control",
    "read_contrasts",
    "read_corpus",
    "run_chain",
    "save_corpus",
    "select_heads",
    "shuffled",
    "steer",
    "to_dataset",
    "with_contrasts",
    "write_contrasts",
    "write_corpus",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'biasgym_tl' has no attribute {name!r}")
    return getattr(import_module(f"biasgym_tl.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
