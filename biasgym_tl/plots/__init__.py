"""Pictures of results: functions that return a ``plotly`` figure and show nothing."""

from biasgym_tl.plots.attention import plot_attention
from biasgym_tl.plots.comparison import plot_comparison
from biasgym_tl.plots.conditions import plot_conditions
from biasgym_tl.plots.curves import (
    plot_concentration,
    plot_k_sweep,
    plot_loss,
    plot_overlap,
    plot_top_k,
)
from biasgym_tl.plots.figure import write_png, write_pngs
from biasgym_tl.plots.frontier import plot_frontier, plot_off_target, plot_specificity
from biasgym_tl.plots.heatmap import plot_heads, plot_methods, plot_slider
from biasgym_tl.plots.html import write_html
from biasgym_tl.plots.scatter import plot_agreement, plot_benefit_and_damage
from biasgym_tl.plots.stereotypes import plot_stereotype_map
from biasgym_tl.plots.targets import plot_targets

__all__ = [
    "plot_agreement",
    "plot_attention",
    "plot_benefit_and_damage",
    "plot_comparison",
    "plot_concentration",
    "plot_conditions",
    "plot_frontier",
    "plot_heads",
    "plot_k_sweep",
    "plot_loss",
    "plot_methods",
    "plot_off_target",
    "plot_overlap",
    "plot_slider",
    "plot_specificity",
    "plot_stereotype_map",
    "plot_targets",
    "plot_top_k",
    "write_html",
    "write_png",
    "write_pngs",
]
