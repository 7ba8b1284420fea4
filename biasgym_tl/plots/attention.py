"""Attention of one head from the answer position, on both sides of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.heads import GivenHead, Head
from biasgym_tl.plots.figure import RED, styled


def plot_attention(
    attention: Mapping[str, Float[Tensor, "n_layers n_heads pos"]],
    words: Mapping[str, Sequence[str]],
    head: GivenHead,
) -> go.Figure:
    """Bars of the attention that each token gets from the answer position, one panel a run.

    Args:
        attention: By name of the run, from :func:`biasgym_tl.answer_attention`.
        words: The tokens of each run as text.
        head: Which head.

    Raises:
        SettingError: a run has another number of tokens than of words.
        SteeringError: ``head`` is no head.
    """
    head = Head.parse(head)
    most: list[str] = []
    names = [escape(name) for name in attention]
    space = 0.3 / len(attention)  # for the tokens
    figure = make_subplots(1, len(attention), subplot_titles=names, horizontal_spacing=space)
    for column, (name, found) in enumerate(attention.items(), start=1):
        weights = found[head].tolist()
        if len(words[name]) != len(weights):
            raise SettingError(
                f"words of {name!r} must be {len(weights)}, one a token, got {len(words[name])}."
            )
        labels = [_label(i, word) for i, word in enumerate(words[name])]
        highest = max(range(len(weights)), key=weights.__getitem__)
        most.append(f'{weights[highest]:.0%} at "{_shown(words[name][highest]).strip()}"')
        bars = go.Bar(
            x=weights,
            y=labels,
            orientation="h",
            marker={"color": RED},
            showlegend=False,
            hovertemplate=f"{head} at %{{y}}: %{{x:.3f}}<extra>{escape(name)}</extra>",
        )
        figure.add_trace(bars, row=1, col=column)
    longest = max(len(found) for found in words.values())
    figure.update_xaxes(title="attention", range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    beside = "".join(f"; {name}: {found}" for name, found in zip(names[1:], most[1:], strict=True))
    title = (
        f"{head}: attention of {most[0]}<br><sup>of the tokens shown, from the answer position; "
        f"{names[0]}{beside}</sup>"
    )
    return styled(figure, title, height=220 + 20 * longest)


def _label(i: int, word: str) -> str:
    """A token with its place, so that no two labels are equal."""
    return f"{i}  {_shown(word)}"


def _shown(word: str) -> str:
    return escape(word.replace("\n", "↵")) or "(nothing)"
