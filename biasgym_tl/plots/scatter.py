"""Every head as a point, its value on one measure against its value on another."""

from __future__ import annotations

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.heads import all_heads
from biasgym_tl.plots.figure import styled
from biasgym_tl.scoping.compare import Comparison, rank_correlation
from biasgym_tl.scoping.damage import HeadDamage
from biasgym_tl.scoping.scores import HeadScores

COSTS = {"facts": "fall of facts' log-odds (nats)", "loss": "rise of loss (nats per token)"}


def plot_agreement(
    comparison: Comparison, x: str | None = None, y: str | None = None, *, label_top: int = 5
) -> go.Figure:
    """Scatter of every head: its value on one map against its value on another (logits).

    Args:
        comparison: From :func:`biasgym_tl.compare`.
        x: Name of the map on the horizontal axis; default: the first.
        y: Of the vertical axis; default: the second.
        label_top: Name so many of the strongest heads of each map.

    Raises:
        SettingError: they are not two of the maps.
    """
    names = comparison.names
    x, y = x or names[0], y or names[1]
    if x == y or not {x, y} <= set(names):
        raise SettingError(f"x and y must be two of {list(names)}, got {x!r} and {y!r}.")
    on_x, on_y = (comparison.maps[names.index(name)] for name in (x, y))
    effects = [comparison.effects[names.index(name)] for name in (x, y)]
    key = (x, y) if (x, y) in comparison.rank_correlation else (y, x)
    reliability = ", ".join(f"{n} {comparison.reliability[n]:.2f}" for n in (x, y))
    return styled(
        _head_scatter(on_x, on_y, label_top),
        f"{x} and {y}: rank correlation {comparison.rank_correlation[key]}",
        "each mark is a head; positive: toward the stereotype; reliability of each map: "
        f"{reliability}",
        x=f"{x} (logits)\n{effects[0]}",
        y=f"{y} (logits)\n{effects[1]}",
        height=600,
    )


def plot_benefit_and_damage(
    scores: HeadScores, damage: HeadDamage, *, cost: str = "facts", label_top: int = 8
) -> go.Figure:
    """Scatter of every head: what it adds to the stereotype against what is lost without it.

    Args:
        scores: Of any method.
        damage: From :func:`biasgym_tl.scoping.damage.head_damage`.
        cost: ``"facts"`` or ``"loss"``.
        label_top: Name so many of the strongest heads on either axis.

    Raises:
        SettingError: there is no such cost, or the two results are of different models.
    """
    if cost not in COSTS:
        raise SettingError(f"cost must be 'facts' or 'loss', got {cost!r}.")
    if scores.model != damage.model:
        raise SettingError(
            f"damage must be of the model {scores.model!r} of the scores, got {damage.model!r}."
        )
    lost = getattr(damage, cost).mean(0)
    agreement = rank_correlation(scores.values.flatten()[None], lost.flatten()[None]).item()
    return styled(
        _head_scatter(scores.values, lost, label_top),
        f'"{scores.toward}" against {cost}: rank correlation of heads {agreement:+.2f}',
        f"right: toward the stereotype, up: missed more; {scores.model}, each head alone to "
        f"{damage.mode}",
        x=f"delta-logit (logits), {scores.effect}",
        y=f"{COSTS[cost]} without the head",
        height=560,
    )


def _head_scatter(
    x: Float[Tensor, "n_layers n_heads"], y: Float[Tensor, "n_layers n_heads"], label_top: int
) -> go.Figure:
    """Scatter coloured by layer; the ``label_top`` highest heads on either axis are named."""
    heads = all_heads(*x.shape)
    k = min(label_top, len(heads))
    named = [int(i) for values in (x, y) for i in values.flatten().topk(k).indices]
    sides = _sides(_pixels(x), _pixels(y), {i: str(heads[i]) for i in named})
    figure = go.Figure(
        go.Scatter(
            x=x.flatten().tolist(),
            y=y.flatten().tolist(),
            mode="markers+text",
            cliponaxis=False,
            text=[str(head) if i in sides else "" for i, head in enumerate(heads)],
            textposition=[sides.get(i, "middle right") for i in range(len(heads))],
            customdata=[str(head) for head in heads],
            marker={
                "color": [head.layer for head in heads],
                "colorscale": "Viridis",
                "size": 7,
                "colorbar": {"title": {"text": "layer"}},
            },
            hovertemplate="%{customdata}: %{x:+.3f}, %{y:+.4f}<extra></extra>",
        )
    )
    room = 0.12 * (x.max() - x.min()).item() or 1.0  # for names
    return figure.update_xaxes(range=[x.min().item() - room, x.max().item() + room])


def _pixels(values: Float[Tensor, "n_layers n_heads"]) -> list[float]:
    """About where values stand in a picture of 400 pixels."""
    flat = values.flatten().double()
    pixels: list[float] = (400 * (flat - flat.min()) / (flat.max() - flat.min() or 1.0)).tolist()
    return pixels


def _sides(x: list[float], y: list[float], names: dict[int, str]) -> dict[int, str]:
    """On which side of its mark each name stands; one that would stand on another is left out."""
    taken: list[tuple[float, float, float]] = []
    sides = {}
    for i, name in names.items():
        wide = 9.0 * len(name)
        for side, left, low in (
            ("middle right", 6, -9), ("middle left", -6 - wide, -9), ("top center", -wide / 2, 4),
            ("bottom center", -wide / 2, -22),
        ):  # fmt: skip
            box = (x[i] + left, x[i] + left + wide, y[i] + low)
            if all(box[1] < a or b < box[0] or abs(box[2] - at) >= 18 for a, b, at in taken):
                sides[i] = side
                taken.append(box)
                break
    return sides
