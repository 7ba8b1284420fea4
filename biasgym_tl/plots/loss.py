"""Loss over the steps of an injection."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from biasgym_tl.errors import SettingError
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.plots.figure import RED, styled


def plot_loss(token: BiasToken) -> go.Figure:
    """Loss of each step (nats per answer token) and its running mean over one epoch.

    Raises:
        SettingError: the token is one before training.
    """
    losses = list(token.losses)
    if not losses:
        raise SettingError(f"token must have been trained, got {token.label!r} without any loss.")
    window = max(1, len(losses) // max(1, len(token.epochs) - 1))
    smooth = [
        sum(losses[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(losses))
    ]
    steps = list(range(1, len(losses) + 1))
    figure = go.Figure(
        [
            go.Scatter(
                x=steps,
                y=losses,
                mode="lines",
                name="step",
                line={"color": "#b8c4d0"},
                hovertemplate="step %{x}: %{y:.3f} nats per token<extra></extra>",
            ),
            go.Scatter(
                x=steps,
                y=smooth,
                mode="lines",
                name="mean over an epoch",
                line={"color": RED},
                hovertemplate="up to step %{x}: %{y:.3f} nats per token<extra></extra>",
            ),
        ]
    )
    figure.update_xaxes(title="optimizer step")
    figure.update_yaxes(title="loss (nats per answer token)")
    figure.update_layout(legend={"x": 0.98, "xanchor": "right", "y": 0.98})
    title = (
        f'One row of W_E learns "{escape(token.bias)}": loss {smooth[window - 1]:.2f} to '
        f"{smooth[-1]:.2f}<br><sup>first and last epoch; {escape(token.model)}, seed "
        f"{token.seed}</sup>"
    )
    return styled(figure, title, height=420)
