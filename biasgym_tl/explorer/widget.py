"""The live explorer, of ipywidgets and a plotly FigureWidget."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from biasgym_tl.explorer.looks import Looks
from biasgym_tl.explorer.panel import attention_html, head_html, part, what_if_html
from biasgym_tl.heads import GivenHead, check_heads
from biasgym_tl.plots.heatmap import plot_heads
from biasgym_tl.scoping.agreement import SeedOverlap
from biasgym_tl.scoping.scores import HeadScores

THIS, WIDTH = "this head", 560


def _in_one(figure: go.Figure) -> go.Figure:
    """The figure as wide as there is room, its lines below the title as part of the title: a widget
    is drawn before it is on the page, where Plotly would put them over one another."""
    title, below = figure.layout.title.text, figure.layout.title.subtitle.text
    text = f'{title}<br><span style="font-size: 13px; color: #555555">{below}</span>'
    return figure.update_layout(
        width=WIDTH, title={"text": text, "subtitle": None, "font": {"size": 16}}
    )


class ExplorerWidget:
    """Heatmap on the left; on the right what is known of the chosen head.

    ``box`` is the widget. :meth:`choose` and :meth:`steer` do what clicks do.
    """

    def __init__(
        self, scores: HeadScores, looks: Looks | None, seeds: SeedOverlap | None, k: int
    ) -> None:
        """``looks`` runs the model; without it there is no attention and no steering."""
        self._scores, self._looks, self._seeds = scores, looks, seeds
        self._top = scores.top(k)
        self.map = go.FigureWidget(_in_one(plot_heads(scores, mark_top=k, seeds=seeds)))
        self.map.add_scatter(
            mode="markers",
            marker={"size": 13, "color": "#ffd500", "line": {"width": 2.5, "color": "black"}},
            hoverinfo="skip",
            showlegend=False,
        )
        self.map.data[0].on_click(self._clicked)
        self.head = widgets.Dropdown(
            options=[(str(head), head) for head in scores.top(scores.values.numel())],
            description="head",
        )
        self.pair = widgets.Dropdown(
            options=[(prompt, i) for i, prompt in enumerate(scores.prompts)],
            description="pair",
            layout={"width": "480px"},
        )
        self.which = widgets.Dropdown(options=[THIS, f"top {k}"], description="silence")
        self.mode = widgets.Dropdown(options=["mean", "zero"], description="to")
        self.button = widgets.Button(description="Steer", button_style="primary")
        self.about, self.attention, self.said = (widgets.HTML() for _ in range(3))
        self.head.observe(self._show_head, "value")
        self.pair.observe(self._show_attention, "value")
        self.button.on_click(self.steer)
        self.box = widgets.HBox([self.map, self._panel()], layout={"flex_flow": "row wrap"})
        self._show_head()

    def _panel(self) -> widgets.VBox:
        shown = [widgets.HTML(part("style")), self.head, self.about]
        if self._looks is not None:
            steering = widgets.HBox([self.which, self.mode, self.button])
            shown += [self.pair, self.attention, steering, self.said]
        return widgets.VBox(shown, layout={"width": "640px"})

    def choose(self, head: GivenHead, pair: int | None = None) -> None:
        """Show a head, and a pair if one is given."""
        (self.head.value,) = check_heads([head], *self._scores.values.shape)
        if pair is not None:
            self.pair.value = pair

    def steer(self, _: Any = None) -> None:
        """Silence what is chosen and show what the model says then."""
        if self._looks is None:
            return
        heads = (self.head.value,) if self.which.value == THIS else self._top
        self.button.disabled, self.button.description = True, "running ..."
        try:
            found = self._looks.what_if(self.pair.value, heads, self.mode.value)
            self.said.value = what_if_html(found)
        finally:
            self.button.disabled, self.button.description = False, "Steer"

    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        if points.xs and points.xs[0].startswith("H"):
            self.choose((int(points.ys[0]), int(points.xs[0][1:])))

    def _show_head(self, _: Any = None) -> None:
        head = self.head.value
        self.map.data[-1].update(x=[f"H{head.head}"], y=[head.layer])
        self.about.value = head_html(self._scores, head, self._seeds)
        self.said.value = ""
        self._show_attention()

    def _show_attention(self, _: Any = None) -> None:
        if self._looks is not None:
            self.attention.value = attention_html(
                self._looks.sides(self.pair.value), self.head.value
            )
            self.said.value = ""
