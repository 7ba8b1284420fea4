"""What is shown of a head, as HTML; all text that a model or a user wrote is escaped."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import jinja2

from biasgym_tl.explorer.looks import Side, WhatIf
from biasgym_tl.heads import Head
from biasgym_tl.scoping.agreement import SeedOverlap
from biasgym_tl.scoping.scores import HeadScores


@cache
def _template() -> jinja2.Template:
    source = resources.files("biasgym_tl").joinpath("data/explorer.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def part(name: str, **arguments: Any) -> str:
    """A part of the template: ``style``, ``page``, or what the functions below fill."""
    return str(getattr(_template().module, name)(**arguments))


def head_html(scores: HeadScores, head: Head, seeds: SeedOverlap | None = None) -> str:
    """Value, rank and seeds of a head, and its value on each pair."""
    values, by_pair = scores.values, scores.by_pair
    largest = by_pair.abs().max().item() or 1.0
    of_seeds = seeds and {
        "nominated": int(seeds.seeds_of()[head]),
        "k": seeds.k_per_seed,
        "values": seeds.maps[:, head.layer, head.head].tolist(),
    }
    return part(
        "head",
        head=str(head),
        value=values[head].item(),
        error=scores.standard_error[head].item(),
        rank=1 + int((values > values[head]).sum()),
        n_heads=values.numel(),
        basis=scores.basis,
        group=scores.kv_group(head.head),
        effect=scores.effect,
        seeds=of_seeds,
        pairs=[
            {"prompt": prompt, "other": other, "value": here, "width": 50 * abs(here) / largest}
            for prompt, other, here in zip(
                scores.prompts,
                scores.neutral_prompts or ("",) * len(scores.prompts),
                by_pair[(slice(None), *head)].tolist(),
                strict=True,
            )
        ],
    )


def attention_html(sides: tuple[Side, ...], head: Head) -> str:
    """The tokens of both runs, each as dark as the head looks at it from the answer position."""
    shown = [
        {"name": s.name, "tokens": list(zip(s.words, s.attention[head].tolist(), strict=True))}
        for s in sides
    ]
    return part("attention", head=str(head), sides=shown)


def what_if_html(found: WhatIf) -> str:
    """What the model says next, as it is and steered."""
    return part("what_if", found=found, heads=", ".join(map(str, found.heads)))
