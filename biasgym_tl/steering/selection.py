"""A choice of heads, written down before it is judged, with the data it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from biasgym_tl.errors import SteeringError
from biasgym_tl.heads import Head
from biasgym_tl.hooks import MODES
from biasgym_tl.passages import load_passages
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.store import digest, read_kind, versions, write_json


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Selection:
    """Heads with all that led to them. Iterates over its heads, so ``steer`` takes it as it is."""

    heads: tuple[Head, ...]
    """Strongest first."""
    method: str
    """How heads were scored."""
    token: str
    """Which row stood in the slot, or ``"no injection"``."""
    k: int
    mode: str
    """What they are to be replaced with: ``"zero"`` or ``"mean"``."""
    reference: str
    """Which text the mean is taken over; empty in mode ``"zero"``."""
    model: str
    bias: str
    data: dict[str, tuple[str, ...]]
    """Fingerprints of the prompts, targets and texts that the scores and means rest on, by kind.
    What the row was trained on is not among them."""
    settings: dict[str, Any]
    """Settings of the scores."""
    versions: dict[str, str]

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __repr__(self) -> str:
        return f"Selection({self.method} on {self.token}, {self.mode}: {', '.join(map(str, self))})"

    def check_model(self, name: str) -> None:
        """Refuse another model than the heads were chosen on.

        Raises:
            SteeringError: ``name`` is another model.
        """
        if name != self.model:
            raise SteeringError(
                f"model must be {self.model!r}, on which the heads were chosen, got {name!r}."
            )

    def check_held_out(self, **items: Iterable[str]) -> None:
        """Refuse to be judged on what the choice has seen.

        Args:
            items: By kind (``prompts``, ``targets``, ``texts``), what is to be evaluated on.

        Raises:
            SteeringError: an item is among those; the message shows it.
        """
        for kind, texts in items.items():
            seen = set(self.data.get(kind, ()))
            both = [text for text in texts if _fingerprint(text) in seen]
            if both:
                raise SteeringError(
                    f"{kind} of an evaluation must not be among those that the heads were chosen "
                    f"on, got {both[:3]}{' and more' if len(both) > 3 else ''} in both. "
                    "Evaluate on held-out ones."
                )

    def save(self, path: str | Path) -> Path:
        """Write it as one JSON file."""
        record = {**dataclasses.asdict(self), "heads": [str(head) for head in self.heads]}
        return write_json(Path(path), {"kind": "Selection", **record})

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read a file written by :meth:`save`.

        Raises:
            StoreError: the file is missing, is not JSON, or is not a selection.
        """

        def build(values: dict[str, Any]) -> Selection:
            heads = tuple(map(Head.parse, values["heads"]))
            data = {kind: tuple(found) for kind, found in values["data"].items()}
            return cls(**{**values, "heads": heads, "data": data})

        return read_kind(Path(path), "Selection", build)


def select_heads(scores: HeadScores, k: int = 10, *, mode: str = "mean") -> Selection:
    """Choose the ``k`` heads that push most toward the stereotype.

    Args:
        scores: From ``BiasScope``, which sees scoping prompts and fitting targets only.
        k: Number of heads.
        mode: What they are to be replaced with.

    Raises:
        SettingError: the model does not have ``k`` heads.
        SteeringError: there is no such mode.
    """
    if mode not in MODES:
        raise SteeringError(f"mode must be one of {list(MODES)}, got {mode!r}.")
    data = {
        "prompts": scores.prompts,
        "targets": scores.label_targets,
        "texts": load_passages("reference") if mode == "mean" else (),
    }
    return Selection(
        heads=scores.top(k),
        method=str(scores.settings["method"]),
        token=scores.token,
        k=k,
        mode=mode,
        reference="shipped neutral text" if mode == "mean" else "",
        model=scores.model,
        bias=scores.bias,
        data={kind: tuple(sorted(map(_fingerprint, texts))) for kind, texts in data.items()},
        settings=scores.settings,
        versions=versions(),
    )


def _fingerprint(text: str) -> str:
    """Hash of a text's words; case, spaces and punctuation at the ends make no difference."""
    return digest(" ".join(text.casefold().split()).strip(" .,:;!?"))
