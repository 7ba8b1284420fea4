"""Layer-by-head heatmaps of delta-logit: one, several side by side, or one with a slider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from html import escape

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.plots.figure import styled
from biasgym_tl.scoping.agreement import SeedOverlap, Significance
from biasgym_tl.scoping.scores import HeadScores

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

    Raises:
        SettingError: ``mlps`` is asked for and the scores hold none on the same run.
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
        dots = {"symbol": "circle", "size": 5, "color": "black"}
        figure.add_trace(_marks(significance.heads(SIGNIFICANT), dots))
    if mark_top:
        figure.add_trace(_frames(scores, mark_top, 15))
    return _styled(figure, scores, escape(title) if title else _title(scores, remarks))


def plot_methods(scores: Mapping[str, HeadScores], *, mark_top: int = 10) -> go.Figure:
    """Heatmaps side by side, each with its own range of colours: effects differ in size.

    Args:
        scores: Maps of one model, by name.
        mark_top: Frame this many of the strongest heads of each.

    Raises:
        SettingError: there is no map.
    """
    if not scores:
        raise SettingError("scores must hold one map or more, got none.")
    rows = -(-len(scores) // PER_ROW)
    columns = -(-len(scores) // rows)
    figure = make_subplots(
        rows,
        columns,
        shared_yaxes=True,
        subplot_titles=[escape(name) for name in scores],
        vertical_spacing=0.16 / rows,
    )
    places = [{"row": i // columns + 1, "col": i % columns + 1} for i in range(rows * columns)]
    for place, found in zip(places, scores.values(), strict=False):
        limit = _limit(found)
        bar = {
            "title": {"text": "delta-logit", "side": "right"},
            "len": 0.8 / rows,
            "y": 1,
            "yanchor": "top",
            "tickvals": [-limit, 0, limit],
            "ticktext": ["away from<br>stereotype", "0", "toward<br>stereotype"],
        }
        trace = _trace(found, limit).update(showscale=place is places[0], colorbar=bar)
        figure.add_trace(trace, **place)
        if mark_top:
            figure.add_trace(_frames(found, mark_top, 12), **place)
    first = next(iter(scores.values()))
    _axes(figure, len(first.values))
    figure.update_yaxes(title="").update_yaxes(title="layer", col=1)
    figure.update_xaxes(title="").update_xaxes(title="head", row=rows)
    for empty in places[len(scores) :]:
        figure.update_xaxes(visible=False, **empty).update_yaxes(visible=False, **empty)
    k = min(mark_top or 10, first.values.numel())
    shared = set.intersection(*(set(found.top(k)) for found in scores.values()))
    return styled(
        figure,
        f'"{escape(first.bias)}": of the top {k} heads, {len(shared)} shared by all maps',
        f"{escape(first.model)}, {first.basis}; each map has its own range of colours",
        width=140 + 240 * columns,
        height=rows * max(320, 14 * len(first.values)) + 160,
    )


def plot_slider(scores: Mapping[str, HeadScores], *, what: str = "seed") -> go.Figure:
    """One heatmap and a slider over seeds or epochs; the range of colours stays the same.

    Args:
        scores: Maps of one model, by what the slider shows.
        what: What the slider goes over.
    """
    first, limit = next(iter(scores.values())), max(map(_limit, scores.values()))
    figure = go.Figure(
        [_trace(found, limit).update(visible=i == 0) for i, found in enumerate(scores.values())]
    )
    steps = [
        {
            "label": escape(name),
            "method": "update",
            "args": [{"visible": [other == name for other in scores]}],
        }
        for name in scores
    ]
    figure.update_layout(
        sliders=[{"steps": steps, "currentvalue": {"prefix": f"{escape(what)} "}, "pad": {"t": 50}}]
    )
    return _styled(figure, first, _title(first, f", by {escape(what)}"))


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
    return go.Heatmap(
        z=z,
        x=x,
        y=list(range(n_layers)),
        colorscale="RdBu",
        reversescale=True,
        zmid=0,
        zmin=-limit,
        zmax=limit,
        text=text,
        hovertemplate="%{text}<extra></extra>",
        colorbar={"title": {"text": "delta-logit<br>(+ toward<br>stereotype)"}},
    )


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


def _frames(scores: HeadScores, k: int, size: int) -> go.Scatter:
    return _marks(scores.top(k), {"symbol": "square-open", "size": size, "color": "black"})


def _marks(heads: tuple[Head, ...], marker: dict[str, object]) -> go.Scatter:
    return go.Scatter(
        x=[f"H{head.head}" for head in heads],
        y=[head.layer for head in heads],
        mode="markers",
        marker=marker,
        hoverinfo="skip",
        showlegend=False,
    )


def _limit(scores: HeadScores, mlps: bool = False) -> float:
    largest: float = scores.values.abs().max().item()
    if mlps and scores.mlps is not None:
        largest = max(largest, scores.mlps.mean(0).abs().max().item())
    return largest


def _axes(figure: go.Figure, n_layers: int) -> None:
    figure.update_xaxes(title="head", side="bottom")
    figure.update_yaxes(
        title="layer", dtick=max(1, n_layers // 15), range=[-0.5, n_layers - 0.5], zeroline=False
    )


def _styled(figure: go.Figure, scores: HeadScores, title: str) -> go.Figure:
    _axes(figure, len(scores.values))
    return styled(figure, title, height=max(420, 18 * len(scores.values) + 180))


def _title(scores: HeadScores, remarks: str) -> str:
    strongest = ", ".join(map(str, scores.top(min(3, scores.values.numel()))))
    return (
        f'Strongest toward "{escape(scores.bias)}": {strongest}'
        f"<br><sup>{escape(scores.model)}, {escape(scores.effect)}<br>"
        f"mean of {scores.basis}{remarks}</sup>"
    )
