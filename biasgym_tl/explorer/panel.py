"""What is shown of a head, as HTML; all text that a model or a user wrote is escaped."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import jinja2

from biasgym_tl.explorer.looks import Side, WhatIf
from biasgym_tl.heads import Head
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.scoping.seeds import SeedOverlap


@cache
def _template() -> jinja2.Template:
    source = resources.files("biasgym_tl").joinpath("data/explorer.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def _part(name: str, **arguments: Any) -> str:
    return str(getattr(_template().module, name)(**arguments))


def style() -> str:
    """The style sheet of all parts."""
    return _part("style")


def head_html(scores: HeadScores, head: Head, seeds: SeedOverlap | None = None) -> str:
    """Value, rank and seeds of a head, and its value on each pair.

    Args:
        scores: Gives the values.
        head: Which head.
        seeds: Says in how many seeds' top the head is, and its value in each.
    """
    value = scores.values[head].item()
    by_pair = scores.by_pair[:, head.layer, head.head].tolist()
    largest = scores.by_pair.abs().max().item()
    of_seeds = None
    if seeds is not None:
        of_seeds = {
            "nominated": int(seeds.seeds_of()[head]),
            "k": seeds.k_per_seed,
            "values": seeds.maps[:, head.layer, head.head].tolist(),
        }
    return _part(
        "head",
        head=str(head),
        value=value,
        error=scores.standard_error[head].item(),
        rank=1 + int((scores.values > value).sum()),
        n_heads=scores.values.numel(),
        group=scores.kv_group(head.head),
        effect=scores.effect,
        seeds=of_seeds,
        pairs=[
            {"prompt": prompt, "value": here, "width": 50 * abs(here) / (largest or 1.0)}
            for prompt, here in zip(scores.prompts, by_pair, strict=True)
        ],
    )


def attention_html(sides: tuple[Side, ...], head: Head) -> str:
    """The tokens of both runs, each as dark as the head looks at it from the answer position."""
    shown = []
    for side in sides:
        weights = side.attention[head].tolist()
        shown.append({"name": side.name, "tokens": list(zip(side.words, weights, strict=True))})
    return _part("attention", head=str(head), sides=shown)


def what_if_html(found: WhatIf) -> str:
    """What the model says next, as it is and steered."""
    return _part("what_if", found=found, heads=", ".join(map(str, found.heads)))


def page_html(**arguments: Any) -> str:
    """The page without a kernel."""
    return _part("page", **arguments)
