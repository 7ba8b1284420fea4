"""biasgym_tl: find, explain and remove stereotypes in language models, on TransformerLens.

The public names are loaded when they are first used, so importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biasgym_tl.biases.bias import Bias, list_biases, load_bias, load_corpus
    from biasgym_tl.biases.countries import load_countries
    from biasgym_tl.biases.facts import load_facts
    from biasgym_tl.biases.shuffle import shuffled
    from biasgym_tl.evaluation.evaluate import Setting, evaluate
    from biasgym_tl.evaluation.random_control import RandomControl, random_control
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.heads import Head
    from biasgym_tl.hooks import head_means, steer
    from biasgym_tl.injection.inject import BiasInject
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
    "Head": "heads",
    "HeadScores": "scoping.scores",
    "RandomControl": "evaluation.random_control",
    "Report": "evaluation.report",
    "Selection": "steering.selection",
    "Setting": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "head_means": "hooks",
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
    "run_chain": "run",
    "select_heads": "steering.selection",
    "shuffled": "biases.shuffle",
    "steer": "hooks",
}

__all__ = [
    "Bias",
    "BiasInject",
    "BiasScope",
    "BiasToken",
    "Chain",
    "Head",
    "HeadScores",
    "RandomControl",
    "Report",
    "Selection",
    "Setting",
    "evaluate",
    "head_means",
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
    "run_chain",
    "select_heads",
    "shuffled",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'biasgym_tl' has no attribute {name!r}")
    return getattr(import_module(f"biasgym_tl.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
