"""Public data sets are not part of the project: tests that need one are skipped without it."""

import os
from pathlib import Path

import pytest


def public_data(name: str) -> Path:
    """A file or folder in the folder that ``BIASGYM_DATA`` names."""
    folder = os.environ.get("BIASGYM_DATA")
    if not folder:
        pytest.skip("BIASGYM_DATA does not name a folder with public data sets")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"the folder of BIASGYM_DATA does not hold {name}")
    return path
