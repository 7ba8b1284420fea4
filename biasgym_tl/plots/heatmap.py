"""Layer-by-head heatmaps of delta-logit: one, several side by side, or one with a slider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.plots.figure import diverging, label, shown, styled
from biasgym_tl.scoping.agreement import SeedOverlap, Significance
from biasgym_tl.scoping.scores import HeadScores

FIRST_LAYER = ("bottom", "top")
"""Where layer 0 is; TransformerLens's notebooks have it on top."""
SIGNIFICANT = 0.05
PER_ROW = 3
"""More maps side by side could not be read at half the width."""


def plot_heads(
    scores: HeadScores,
    *,
    title: str | None = None,
    mark_top: int = 0,
    significance: Significance | None = None,
    seeds: SeedOverlap | None = None,
    damage: Float[Tensor, "n_layers n_heads"] | None = None,
    mlps: bool = False,
    first_layer: str = "bottom",
) -> go.Figure:
    """Heatmap of mean delta-logit: x = head, y = layer, red pushes toward the stereotype.

    The colours are centred at 0, so white is no effect.

    Args:
        scores: What to show.
        title: Default: what the scores are, with the model and the number of pairs.
        mark_top: Frame this many of the strongest heads.
        significance: Dot the heads with q at most 0.05, and show interval and q on hover.
        seeds: Show on hover how many seeds nominate a head.
        damage: Rise of the loss on neutral text without each head (nats per token), for the hover.
        mlps: Add a column with each layer's MLP (direct attribution of the biased run only).
        first_layer: Where layer 0 is: ``"bottom"`` or ``"top"``.

    Raises:
        SettingError: ``mlps`` is asked for and the scores hold none on the same run, or
            ``first_layer`` is neither.
    """
    if mlps and (scores.mlps is None or scores.settings["contrast"] != "biased"):
        raise SettingError(
            f"mlps must be False for the method {scores.settings['method']!r} with the contrast "
            f"{scores.settings['contrast']!r}, got True: MLPs are scored by direct attribution, on "
            "the biased run."
        )
    notes = partial(_notes, significance=significance, seeds=seeds, damage=damage)
    figure, remarks = go.Figure(_trace(scores, _limit(scores, mlps), notes, mlps)), ""
    if mark_top:
        remarks += f", top {mark_top} framed"
    if significance is not None:
        remarks += f", dots: q ≤ {SIGNIFICANT}"
        figure.add_trace(_dots(significance.heads(SIGNIFICANT)))
    if mark_top:
        _frame(figure, scores.top(mark_top))
    return _styled(figure, scores, title, remarks, first_layer)


def plot_methods(
    scores: Mapping[str, HeadScores], *, mark_top: int = 10, first_layer: str = "bottom"
) -> go.Figure:
    """Heatmaps side by side, each with its own range of colours: effects differ in size.

    Args:
        scores: Maps of one model, by name.
        mark_top: Frame this many of the strongest heads of each.
        first_layer: Where layer 0 is: ``"bottom"`` or ``"top"``.

    Raises:
        SettingError: there is no map, or ``first_layer`` is neither.
    """
    if not scores:
        raise SettingError("scores must hold one map or more, got none.")
    rows = -(-len(scores) // PER_ROW)
    columns = -(-len(scores) // rows)
    figure = make_subplots(
        rows,
        columns,
        shared_yaxes=True,
        subplot_titles=[
            label(f"{name} (±{_limit(found):.2g})", 26) for name, found in scores.items()
        ],
        vertical_spacing=0.2 / rows,
    )
    places = [{"row": i // columns + 1, "col": i % columns + 1} for i in range(rows * columns)]
    for place, found in zip(places, scores.values(), strict=False):
        limit = _limit(found)
        bar = {
            "title": {"text": ""},
            **{"len": 1 / rows, "y": 1, "yanchor": "top"},
            "tickvals": [-limit, 0, limit],
            "ticktext": ["away", "delta-logit 0", "toward"],
        }
        trace = _trace(found, limit).update(showscale=place is places[0], colorbar=bar)
        figure.add_trace(trace, **place)
        if mark_top:
            _frame(figure, found.top(mark_top), **place)
    first = next(iter(scores.values()))
    _axes(figure, first, 170, first_layer)
    figure.update_yaxes(title="").update_yaxes(title=_LAYER, col=1)
    figure.update_xaxes(title="").update_xaxes(title="head", row=rows)
    for empty in places[len(scores) :]:
        figure.update_xaxes(visible=False, **empty).update_yaxes(visible=False, **empty)
    k = min(mark_top or 10, first.values.numel())
    shared = set.intersection(*(set(found.top(k)) for found in scores.values()))
    return styled(
        figure,
        f'"{first.toward}": of the top {k} heads, {len(shared)} shared by all maps',
        f"red: toward it, blue: away from it; darkest: the logits in brackets; "
        f"{first.model}, {first.basis}{f', top {k} framed' if mark_top else ''}",
        width=180 + 240 * columns,
        height=rows * max(320, 14 * len(first.values)) + 160,
    )


def plot_slider(
    scores: Mapping[str, HeadScores], *, what: str = "seed", first_layer: str = "bottom"
) -> go.Figure:
    """One heatmap and a slider over seeds or epochs; the range of colours stays the same.

    Args:
        scores: Maps of one model, by what the slider shows.
        what: What the slider goes over.
        first_layer: Where layer 0 is: ``"bottom"`` or ``"top"``.

    Raises:
        SettingError: ``first_layer`` is neither.
    """
    first, limit = next(iter(scores.values())), max(map(_limit, scores.values()))
    figure = go.Figure(
        [_trace(found, limit).update(visible=i == 0) for i, found in enumerate(scores.values())]
    )
    steps = [
        {
            "label": shown(name),
            "method": "update",
            "args": [{"visible": [other == name for other in scores]}],
        }
        for name in scores
    ]
    figure.update_layout(
        sliders=[{"steps": steps, "currentvalue": {"prefix": f"{shown(what)} "}, "pad": {"t": 80}}]
    )
    _styled(figure, first, None, f", by {what}", first_layer)
    return figure.update_layout(height=figure.layout.height + 90, margin={"b": 165})


def _trace(
    scores: HeadScores,
    limit: float,
    notes: Callable[[Head], list[str]] = lambda head: [],
    mlps: bool = False,
) -> go.Heatmap:
    """The map, with what is known of a head on hover; ``notes`` are lines beside its value."""
    values, errors, one = scores.values, scores.standard_error, len(scores.prompts) == 1
    n_layers, n_heads = values.shape
    z: list[list[float | None]] = values.tolist()
    text = [[""] * n_heads for _ in range(n_layers)]
    for head in all_heads(n_layers, n_heads):
        lines = [
            f"<b>{head}</b>",
            f"delta-logit {values[head]:+.3f}"
            + ("" if one else f" ± {errors[head]:.3f} (s.e., {scores.basis})"),
            *notes(head),
            f"KV group {scores.kv_group(head.head)}",
        ]
        text[head.layer][head.head] = "<br>".join(lines)
    x = [f"H{head}" for head in range(n_heads)]
    if mlps and scores.mlps is not None:
        x += ["", "MLP"]
        for layer, value in enumerate(scores.mlps.mean(0).tolist()):
            z[layer] += [None, value]
            text[layer] += ["", f"<b>MLP of layer {layer}</b><br>delta-logit {value:+.3f}"]
    unit = "delta-logit<br>(logits)"
    return diverging(limit, unit, z=z, x=x, y=list(range(n_layers)), text=text)


def _notes(
    head: Head,
    significance: Significance | None,
    seeds: SeedOverlap | None,
    damage: Float[Tensor, "n_layers n_heads"] | None,
) -> list[str]:
    """What other results say of a head."""
    lines = []
    if significance is not None:
        mean, low, high, q = (
            getattr(significance, of)[head] for of in ("mean", "low", "high", "q")
        )
        lines.append(f"biased minus neutral run {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"q = {q:.3f}")
    if seeds is not None:
        lines.append(f"in the top {seeds.k_per_seed} of {seeds.seeds_of()[head]}/{len(seeds.maps)}")
    if damage is not None:
        lines.append(f"loss on neutral text {damage[head]:+.4f} nats per token without it")
    return lines


def _frame(figure: go.Figure, heads: tuple[Head, ...], **place: Any) -> None:
    """A black frame within a white one around each cell, so that it shows on every colour."""
    cells = ((head.head - 0.5, head.layer - 0.5) for head in heads)
    path = " ".join(f"M{x},{y}H{x + 1}V{y + 1}H{x}Z" for x, y in cells)
    for colour, width in (("white", 5), ("black", 2)):
        figure.add_shape(type="path", path=path, line={"color": colour, "width": width}, **place)


def _dots(heads: tuple[Head, ...]) -> go.Scatter:
    return go.Scatter(
        x=[f"H{head.head}" for head in heads],
        y=[head.layer for head in heads],
        mode="markers",
        marker={"size": 7, "color": "black", "line": {"color": "white", "width": 1.5}},
        hoverinfo="skip",
        showlegend=False,
    )


def _limit(scores: HeadScores, mlps: bool = False) -> float:
    largest: float = scores.values.abs().max().item()
    if mlps and scores.mlps is not None:
        largest = max(largest, scores.mlps.mean(0).abs().max().item())
    return largest


_LAYER = "layer (0 reads the input)"


def _axes(figure: go.Figure, scores: HeadScores, room: int, first_layer: str) -> None:
    """``room`` is the width in pixels that the names of heads have."""
    check_one_of("first_layer", first_layer, FIRST_LAYER)
    n_layers, n_heads = scores.values.shape
    each = next(n for n in (1, 2, 4, 8, 16, n_heads) if 28 * n_heads <= n * room)
    names = [f"H{head}" for head in range(0, n_heads, each)]
    names += [name for trace in figure.data if trace.x for name in trace.x[n_heads + 1 :]]
    figure.update_xaxes(title="head", tickvals=names, tickangle=0, showgrid=False)
    ends = -0.5, n_layers - 0.5
    figure.update_yaxes(
        title=_LAYER,
        dtick=max(1, -(-n_layers // 16)),
        range=ends if first_layer == "bottom" else ends[::-1],
        zeroline=False,
        showgrid=False,
    )


def _styled(
    figure: go.Figure, scores: HeadScores, title: str | None, remarks: str, first_layer: str
) -> go.Figure:
    _axes(figure, scores, 340, first_layer)
    n_layers, n_heads = scores.values.shape
    strongest = ", ".join(map(str, scores.top(min(3, n_layers * n_heads))))
    return styled(
        figure,
        title or f'Heads that push most toward "{scores.toward}": {strongest}',
        f"red: toward it, blue: away from it; mean of {scores.basis}"
        f"{remarks}\n{scores.model}, {scores.effect}",
        width=max(720, 220 + 12 * n_heads),
        height=max(420, 18 * n_layers + 180),
    )
