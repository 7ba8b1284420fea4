"""biasgym_tl: find, explain and remove stereotypes in language models, on TransformerLens.

The public names stand in ``__init__.pyi`` and are loaded when they are first used, so importing
the package is quick.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import Any

import lazy_loader

# Torch's waiting threads spin, and take the cores from whatever else runs. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = version("biasgym-tl")
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name, or the module ``plots``."""
    return import_module("biasgym_tl.plots") if name == "plots" else _public(name)
