"""What an exported model says of itself: settings for programs, a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from biasgym_tl.files import write_text
from biasgym_tl.heads import Head
from biasgym_tl.hooks import LayerEdit
from biasgym_tl.store import versions, write_json


def write_card(
    to: Path,
    source: str,
    kind: str,
    mode: str,
    edit: Mapping[int, LayerEdit],
    found: tuple[float, float] | None,
) -> None:
    """Say in the folder what was done, for programs and for people; ``found`` is how far it is from
    the hooked model, in nats and as a share of the spread, None where it was not compared."""
    error, share = found or (None, None)
    compared = "It was not compared with the hooked model."
    if found:
        compared = (
            "Log-probabilities\ndiffer from the hooked model's by at most\n"
            f"{error:.1e} nats on the texts that were compared."
        )
    kept = {
        str(Head(layer, head)): share_kept
        for layer, part in edit.items()
        for head, share_kept in zip(part.heads, part.factor.tolist(), strict=True)
    }
    done = {
        "source": source,
        "type": kind,
        "heads": list(kept),
        "mode": mode,
        "factor": kept,
        "largest_log_prob_difference": error,
        "share_of_log_prob_spread": share,
        "versions": versions(),
    }
    write_json(to / "biasgym.json", done)
    write_text(
        to / "README.md",
        f"""# {source}, steered

A copy of `{source}` with the output of {len(kept)} attention heads changed
(mode "{mode}"): {", ".join(kept)}. The edit is in the weights, which are
of the type {kind}; no code is needed beside transformers. {compared} `biasgym.json` has
all settings. Steering hides a stereotype and can cost other abilities: evaluate before use.
""",
    )
