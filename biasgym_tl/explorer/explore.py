"""The explorer: a heatmap whose heads can be clicked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biasgym_tl.errors import SettingError, check_within
from biasgym_tl.explorer.looks import Looks
from biasgym_tl.explorer.panel import attention_html, head_html, part
from biasgym_tl.files import write_text
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.plots.heatmap import plot_heads
from biasgym_tl.plots.html import figures_html
from biasgym_tl.scoping.agreement import SeedOverlap
from biasgym_tl.scoping.scores import HeadScores

if TYPE_CHECKING:
    from biasgym_tl.explorer.widget import ExplorerWidget


def explore(
    scores: HeadScores,
    model: HookedTransformer | None = None,
    token: BiasToken | None = None,
    *,
    seeds: SeedOverlap | None = None,
    k: int = 10,
) -> Explorer:
    """Look at heads one by one: click one in the heatmap, or choose it by name.

    Shows the head's value on each pair, its seeds, where it looks on both runs of a pair, and,
    on request, what the model says with the head, or with the ``k`` strongest, silenced.

    In Jupyter the result shows itself (clicks get lost while a cell runs). Elsewhere,
    :meth:`Explorer.to_html` writes a page that needs no kernel and has no steering.

    Args:
        scores: What to look at.
        model: The model they are of, unsteered and without the token; None: no attention and no
            steering.
        token: The BiasToken they are of; None for scores without injection.
        seeds: Scores of several seeds, which this one is compared with.
        k: How many of the strongest heads are framed, and steered together.

    Raises:
        SettingError: model, token or ``k`` does not fit the scores.
        TokenError: the token does not fit the model.
        ModelError: the model is no HookedTransformer with its own value biases.
    """
    scores.top(k)  # refuses a wrong k
    if model is None and token is not None:
        raise SettingError(
            "model must be given with a token, got None. Call explore(scores, model, token)."
        )
    if seeds is not None and seeds.maps.shape[1:] != scores.values.shape:
        raise SettingError(
            f"seeds must be maps of {tuple(scores.values.shape)} heads as the scores are, got "
            f"{tuple(seeds.maps.shape[1:])}."
        )
    looks = None if model is None else Looks(scores, model, token)
    return Explorer(scores, looks, seeds, k)


@dataclasses.dataclass(frozen=True)
class Explorer:
    """What :func:`explore` returns: shows itself in Jupyter, or is written as a page."""

    scores: HeadScores
    looks: Looks | None
    seeds: SeedOverlap | None
    k: int

    def widget(self) -> ExplorerWidget:
        """The live explorer.

        Raises:
            SettingError: ipywidgets or anywidget is not installed.
        """
        try:
            import anywidget  # noqa: F401
            import ipywidgets  # noqa: F401
        except ImportError as error:
            raise SettingError(
                f"explorer must have {error.name!r} to be live, which is not installed. Run: pip "
                "install 'biasgym-tl[jupyter]'. Or write a page: explore(...).to_html(path)."
            ) from error
        from biasgym_tl.explorer.widget import ExplorerWidget

        return ExplorerWidget(self.scores, self.looks, self.seeds, self.k)

    def page(self, *, pairs: int = 1, plotlyjs: str = "inline") -> str:
        """The explorer as one page of HTML.

        Args:
            pairs: On how many pairs attention is shown (each adds about 1 MB with 270 heads).
            plotlyjs: As in :func:`biasgym_tl.plots.write_html`.

        Raises:
            SettingError: there are not so many pairs.
        """
        check_within("pairs", pairs, 0, len(self.scores.prompts))
        figure = plot_heads(self.scores, mark_top=self.k, seeds=self.seeds)
        sides = [] if self.looks is None else [self.looks.sides(pair) for pair in range(pairs)]
        return part(
            "page",
            title=f"{self.scores.bias} on {self.scores.model}",
            figure=figures_html([figure], plotlyjs)[0],
            fragments={
                str(head): head_html(self.scores, head, self.seeds)
                + "".join(attention_html(each, head) for each in sides)
                for head in self.scores.top(self.scores.values.numel())
            },
            first=str(self.scores.top(1)[0]),
        )

    def to_html(self, path: str | Path, *, pairs: int = 1, plotlyjs: str = "inline") -> Path:
        """Write :meth:`page` to a file."""
        return write_text(Path(path), self.page(pairs=pairs, plotlyjs=plotlyjs))

    def _repr_mimebundle_(self, **options: Any) -> Mapping[str, Any]:
        """The widget, or the page where the widget cannot be shown."""
        text = {"text/plain": repr(self.scores)}
        try:
            return {**self.widget().box._repr_mimebundle_(**options), **text}
        except SettingError:
            page = escape(self.page(pairs=0, plotlyjs="cdn"), quote=True)
            frame = f'<iframe srcdoc="{page}" width="100%" height="760" frameborder="0"></iframe>'
            return {**text, "text/html": frame}

    def __repr__(self) -> str:
        return f"Explorer({self.scores!r})"
