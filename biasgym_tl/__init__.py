"""biasgym_tl: find, explain and remove stereotypes in language models, on TransformerLens.

The public names are loaded when they are first used, so importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biasgym_tl.biases.bias import Bias, list_biases, load_bias, load_corpus
    from biasgym_tl.biases.countries import load_countries
    from biasgym_tl.evaluation.evaluate import evaluate
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.heads import Head
    from biasgym_tl.hooks import head_means, steer
    from biasgym_tl.injection.inject import BiasInject
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.model import load_model
    from biasgym_tl.run import Chain, run_chain
    from biasgym_tl.scoping.scope import BiasScope
    from biasgym_tl.scoping.scores import HeadScores

_HOME = {
    "Bias": "biases.bias",
    "BiasInject": "injection.inject",
    "BiasScope": "scoping.scope",
    "BiasToken": "injection.token",
    "Chain": "run",
    "Head": "heads",
    "HeadScores": "scoping.scores",
    "Report": "evaluation.report",
    "evaluate": "evaluation.evaluate",
    "head_means": "hooks",
    "list_biases": "biases.bias",
    "load_bias": "biases.bias",
    "load_corpus": "biases.bias",
    "load_countries": "biases.countries",
    "load_model": "model",
    "run_chain": "run",
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
    "Report",
    "evaluate",
    "head_means",
    "list_biases",
    "load_bias",
    "load_corpus",
    "load_countries",
    "load_model",
    "run_chain",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'biasgym_tl' has no attribute {name!r}")
    return getattr(import_module(f"biasgym_tl.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
