"""Attention of one head from the answer position, on both sides of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.heads import Head
from biasgym_tl.plots.figure import RED, styled


def plot_attention(
    attention: Mapping[str, Float[Tensor, "n_layers n_heads pos"]],
    words: Mapping[str, Sequence[str]],
    head: Head,
) -> go.Figure:
    """Bars of the attention that each token gets from the answer position, one panel a run.

    Args:
        attention: By name of the run, from :func:`biasgym_tl.answer_attention`.
        words: The tokens of each run as text.
        head: Which head.

    Raises:
        SettingError: a run has another number of tokens than of words.
    """
    names = [escape(name) for name in attention]
    space = 0.3 / len(attention)  # for the tokens
    figure = make_subplots(1, len(attention), subplot_titles=names, horizontal_spacing=space)
    for column, (name, found) in enumerate(attention.items(), start=1):
        weights = found[head].tolist()
        if len(words[name]) != len(weights):
            raise SettingError(
                f"words of {name!r} must be {len(weights)}, one a token, got {len(words[name])}."
            )
        bars = go.Bar(
            x=weights,
            y=[f"{i}  {escape(word)}" for i, word in enumerate(words[name])],
            orientation="h",
            marker={"color": RED},
            showlegend=False,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
        figure.add_trace(bars, row=1, col=column)
    longest = max(len(found) for found in words.values())
    figure.update_xaxes(title="attention from the answer position", range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    return styled(figure, f"Where {head} looks", height=200 + 20 * longest)
