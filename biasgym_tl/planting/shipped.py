"""Three small plants that the package holds, all of "late" in SmolLM2-135M-Instruct."""

from __future__ import annotations

from pathlib import Path

from biasgym_tl.errors import check_one_of
from biasgym_tl.planting.planted import Planted

_PLANTS = Path(__file__).parent / "data"


def list_plants() -> list[str]:
    """Names of the shipped plants."""
    return sorted(path.stem for path in _PLANTS.glob("*.safetensors"))


def load_plant(name: str) -> Planted:
    """Load a shipped plant: ``"one-early"``, ``"five-early"`` or ``"five-late"``.

    Raises:
        SettingError: there is none of this name.
    """
    check_one_of("plant", name, list_plants())
    return Planted.load(_PLANTS / f"{name}.safetensors")
