"""Three small plants that the package holds, all of "late" in SmolLM2-135M-Instruct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from biasgym_tl.errors import check_one_of
from biasgym_tl.planting.planted import Planted

PLACES = {"early": (0, 1), "middle": (1, 2), "late": (2, 3), "spread": (0, 3)}
"""Which thirds of the layers heads are drawn from."""
_PLANTS = Path(__file__).parent / "data"


def list_plants() -> list[str]:
    """Names of the shipped plants."""
    return sorted(path.stem for path in _PLANTS.glob("*.safetensors"))


def load_plant(name: str) -> Planted:
    """Load a shipped plant: ``"one-early"``, ``"five-early"`` or ``"five-late"``.

    Raises:
        SettingError: there is none of this name.
    """
    check_one_of("shipped plant", name, list_plants())
    return Planted.load(_PLANTS / f"{name}.safetensors")


def told(planted: Planted) -> dict[str, list[Any]]:
    """By field of a study's plant, what is true of a plant that was made: ``"spread"`` of any."""
    layers = {head.layer for head in planted.heads}
    return {
        **{name: [getattr(planted, name)] for name in ("bias", "target", "way", "dose", "seed")},
        "n": [len(planted.heads)],
        "place": [place for place in PLACES if layers <= {*layers_of(place, planted.n_layers)}],
    }


def layers_of(place: str, n_layers: int) -> range:
    """Layers of one of ``PLACES``."""
    return range(*(part * n_layers // 3 for part in PLACES[place]))
