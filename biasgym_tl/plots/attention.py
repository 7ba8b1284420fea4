"""Attention of one head from the answer position, on both sides of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.heads import GivenHead, Head
from biasgym_tl.plots.figure import RED, label, shown, styled


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
    head, most = Head.parse(head), list[str]()
    names = [label(name, 60 // len(attention)) for name in attention]
    space = 0.3 / len(attention)  # for the tokens
    figure = make_subplots(1, len(attention), subplot_titles=names, horizontal_spacing=space)
    for column, (name, found) in enumerate(attention.items(), start=1):
        weights, tokens = found[head].tolist(), list(map(_token, words[name]))
        if len(tokens) != len(weights):
            raise SettingError(
                f"words of {name!r} must be {len(weights)}, one a token, got {len(tokens)}."
            )
        highest = max(range(len(weights)), key=weights.__getitem__)
        most.append(f'{weights[highest]:.0%} at "{tokens[highest].strip()}"')
        figure.add_bar(
            x=weights,
            y=[f"{i}  {shown(word)}" for i, word in enumerate(tokens)],  # no two are equal
            orientation="h",
            marker={"color": RED},
            showlegend=False,
            hovertemplate=f"{head} at %{{y}}: %{{x:.3f}}<extra>{shown(name)}</extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    runs = "; ".join(f"{name}: {found}" for name, found in zip(attention, most, strict=True))
    return styled(
        figure,
        f"{head}: attention of {most[0]}",
        f"share of the head's attention from the answer position, on the tokens shown; {runs}",
        x="attention (share)",
        height=220 + 20 * max(map(len, words.values())),
    )


def _token(word: str) -> str:
    return word.replace("\n", "↵") or "(nothing)"
