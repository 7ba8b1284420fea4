"""The command line: parses, calls, prints. Heavy imports happen inside the commands."""

from biasgym_tl.cli import maps, plans, plants, protocols, shared, steps, texts  # noqa: F401 - they add their commands
from biasgym_tl.cli.app import app, main

__all__ = ["app", "main"]
