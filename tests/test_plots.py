"""Figures hold the numbers of the results they show."""

import dataclasses
from html import unescape

import pytest
import torch
from test_compare import SIGNAL, noisy, scores

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.readers import ConditionResult
from biasgym_tl.evaluation.report import Report
from biasgym_tl.heads import Head
from biasgym_tl.plots import (
    plot_agreement,
    plot_attention,
    plot_benefit_and_damage,
    plot_comparison,
    plot_concentration,
    plot_frontier,
    plot_heads,
    plot_methods,
    plot_slider,
    plot_targets,
    plot_top_k,
    write_html,
)
from biasgym_tl.plots.figure import BARS, COLOURS, Series
from biasgym_tl.scoping.agreement import seed_overlap, significance
from biasgym_tl.scoping.compare import compare, concentration
from biasgym_tl.scoping.damage import HeadDamage, KSweep

MAPS = [scores(noisy(SIGNAL, 8, 0.1, seed), bias="<b>") for seed in range(3)]


def test_a_heatmap_with_everything():
    neutral = 0.3 * noisy(torch.zeros(6, 4).double(), 8, 1.0, 7)[:, None]
    found = scores(noisy(SIGNAL, 8, 0.1, 0), mlps=torch.ones(8, 6).double() * 9)
    found = dataclasses.replace(found, neutral_values=neutral)
    tested, overlap = significance(found, n_flips=99), seed_overlap(MAPS, k_per_seed=5)
    damage = torch.linspace(0, 1, 24).view(6, 4)
    figure = plot_heads(
        found, mark_top=3, significance=tested, seeds=overlap, damage=damage, mlps=True
    )
    heatmap, dots = figure.data
    assert [list(row[:4]) for row in heatmap.z] == found.values.tolist()
    assert [row[5] for row in heatmap.z] == [9.0] * 6 and heatmap.x[-1] == "MLP"
    assert heatmap.zmax == -heatmap.zmin == 9.0
    marked = [(y, x) for x, y in zip(dots.x, dots.y, strict=True)]
    assert marked == [(h.layer, f"H{h.head}") for h in tested.heads(0.05)]
    white, black = figure.layout.shapes
    assert white.path == black.path and white.line.width > black.line.width
    assert black.path.split("Z")[:-1] == [
        f"{' ' if i else ''}M{h - 0.5},{n - 0.5}H{h + 0.5}V{n + 0.5}H{h - 0.5}"
        for i, (n, h) in enumerate(found.top(3))
    ]
    hover = heatmap.text[5][3]
    assert f"q = {tested.q[5, 3]:.3f}" in hover and "+1.0000 nats per token" in hover
    assert f"in the top 5 of {overlap.seeds_of()[5, 3]}/3" in hover


def test_mlps_are_there_for_direct_attribution_of_the_biased_run_only():
    neutral = torch.zeros(8, 1, 6, 4).double()
    both = scores(noisy(SIGNAL, 8, 0.1, 0), neutral=neutral, mlps=torch.ones(8, 6).double())
    with pytest.raises(SettingError, match="with the contrast 'difference', got True"):
        plot_heads(both, mlps=True)
    with pytest.raises(SettingError, match="mlps must be False for the method 'zero_ablation'"):
        plot_heads(scores(noisy(SIGNAL, 8, 0.1, 0), method="zero_ablation"), mlps=True)


def test_methods_side_by_side():
    figure = plot_methods({"one": MAPS[0], "<i>": MAPS[1]}, mark_top=2)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [list(map(list, trace.z)) for trace in maps] == [m.values.tolist() for m in MAPS[:2]]
    limits = [f"(±{m.values.abs().max():.2g})" for m in MAPS]
    names = [text.text for text in figure.layout.annotations]
    assert names == [f"one {limits[0]}", f"&lt;i&gt; {limits[1]}"]
    assert "<b>" not in figure.layout.title.text.replace("<br>", "")


def test_the_slider_keeps_its_range():
    figure = plot_slider({str(seed): found for seed, found in enumerate(MAPS)})
    limit = max(found.values.abs().max().item() for found in MAPS)
    assert {trace.zmax for trace in figure.data} == {limit}
    assert [trace.visible for trace in figure.data] == [True, False, False]
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["0", "1", "2"]
    assert steps[1].args[0]["visible"] == [False, True, False]


def test_agreement_shows_both_maps():
    found = compare(MAPS[:2], names=["a", "<b>"])
    figure = found.plot()
    assert list(figure.data[0].x) == MAPS[0].values.flatten().tolist()
    assert list(figure.data[0].y) == MAPS[1].values.flatten().tolist()
    assert figure.layout.yaxis.title.text.startswith("&lt;b&gt; (logits)")
    assert str(found.rank_correlation["a", "<b>"]) in figure.layout.title.text
    for y in ("c", "a"):
        with pytest.raises(SettingError, match=f"x and y must be two of .* got 'a' and '{y}'"):
            plot_agreement(found, "a", y)


def test_concentration_and_overlap():
    found = {"direct": concentration(SIGNAL)}
    figure = plot_concentration(found)
    assert list(figure.data[0].y) == found["direct"].curve.tolist()
    overlap = seed_overlap(MAPS, k_per_seed=5, controls={"untrained": MAPS})
    bars, controls, chance = overlap.plot().data
    assert list(bars.y) == list(controls.y) == [a.n_heads for a in overlap.agreements]
    assert list(chance.y) == [a.by_chance for a in overlap.agreements]


def test_attention_of_both_runs():
    runs = {"biased": torch.rand(6, 4, 3), "neutral": torch.rand(6, 4, 2)}
    words = {"biased": ["People", " from", " <T>"], "neutral": ["People", " from"]}
    figure = plot_attention(runs, words, Head(5, 3))
    assert [list(bar.x) for bar in figure.data] == [run[5, 3].tolist() for run in runs.values()]
    assert figure.data[0].y[2] == "2   &lt;T&gt;" and "L5H3" in figure.layout.title.text
    with pytest.raises(SettingError, match="words of 'neutral' must be 2, one a token, got 3"):
        plot_attention(runs, {**words, "neutral": ["a", "b", "c"]}, Head(0, 0))


def test_the_k_curve_and_benefit_against_damage():
    sweep = KSweep(
        ks=(1, 5), benefit=torch.tensor([[1.0, 2.0], [3.0, 5.0]]).double(),
        damage=torch.tensor([[0.0, 0.1], [0.2, 0.3]]).double(), method="direct", mode="mean",
        bias="<b>", token="late, seed 0", model="tiny", settings={}, versions={},
    )  # fmt: skip
    figure = sweep.plot()
    assert list(figure.data[0].y) == [1.5, 4.0] and list(figure.data[0].x) == [1, 5]
    assert list(figure.data[1].y) == pytest.approx([0.05, 0.25])
    assert "<b>" not in figure.layout.title.text.replace("<br>", "")
    damage = HeadDamage(
        loss=torch.rand(2, 6, 4), facts=torch.rand(3, 6, 4), mode="mean", model="tiny",
        countries=("Italy",) * 3, versions={},
    )  # fmt: skip
    scatter = plot_benefit_and_damage(MAPS[0], damage).data[0]
    assert list(scatter.x) == MAPS[0].values.flatten().tolist()
    assert list(scatter.y) == damage.facts.mean(0).flatten().tolist()
    with pytest.raises(SettingError, match="cost must be 'facts' or 'loss', got 'time'"):
        plot_benefit_and_damage(MAPS[0], damage, cost="time")
    with pytest.raises(SettingError, match="of the model 'tiny' of the scores, got 'other'"):
        plot_benefit_and_damage(MAPS[0], dataclasses.replace(damage, model="other"))


def test_the_strongest_heads_with_and_without_injection():
    figure = plot_top_k({"trained": MAPS, "<i>": MAPS[:1]})
    band, mean, single = figure.data
    tops = [m.values.flatten().sort(descending=True).values[:5].mean().item() for m in MAPS]
    assert mean.y[4] == pytest.approx(sum(tops) / 3) and single.y[4] == pytest.approx(tops[0])
    n = MAPS[0].values.numel()
    assert band.y[4] == pytest.approx(max(tops)) and band.y[2 * n - 5] == pytest.approx(min(tops))
    assert (mean.name, single.name) == ("trained (3)", "&lt;i&gt; (1)")
    with pytest.raises(SettingError, match="maps must hold scores for each name, got none for 'a'"):
        plot_top_k({"a": []})


def test_a_page_of_a_figure_brings_its_library_or_loads_it(tmp_path):
    figure = MAPS[0].plot()
    sizes = {
        how: len(write_html(figure, tmp_path / f"{how}.html", plotlyjs=how).read_text("utf-8"))
        for how in ("cdn", "inline")
    }
    assert sizes["cdn"] < 200_000 and sizes["inline"] > 3_000_000
    assert "cdn.plot.ly" in (tmp_path / "cdn.html").read_text("utf-8")
    page = write_html(figure, tmp_path / "beside.html", plotlyjs="beside").read_text("utf-8")
    assert len(page) < 200_000 and (tmp_path / "plotly.min.js").stat().st_size > 3_000_000
    loads = [page.index(each) for each in ('src="plotly.min.js"', "cdn.plot.ly", "newPlot")]
    assert loads == sorted(loads)
    with pytest.raises(SettingError, match="plotlyjs must be one of .'inline', .*, got 'yes'"):
        write_html(figure, tmp_path / "page.html", plotlyjs="yes")


LONG = "is always late for every single appointment that anybody has ever made " * 2


def test_texts_of_any_length_stay_within_the_figure():
    found = dataclasses.replace(MAPS[0], bias=f"<b>{LONG}", model="m" * 200)
    report = dataclasses.replace(made_report(), attribute=LONG, model=LONG)
    for figure in (
        found.plot(), plot_methods({"a": found, LONG: found}), plot_slider({"0": found}),
        plot_top_k({LONG: [found]}), report.plot(), plot_frontier(report), plot_targets(report),
        compare(MAPS[:2], names=["a", LONG]).plot(),
    ):  # fmt: skip
        layout = figure.layout
        title, below = layout.title.text, layout.title.subtitle.text
        assert max(map(len, unescape(title).split("<br>"))) <= layout.width / 9
        assert max(map(len, unescape(below).split("<br>"))) <= layout.width / 7
        assert "<b>" not in title and layout.margin.t >= 22 * len(title.split("<br>")) + 17
        names = [trace.name for trace in figure.data if trace.name]
        assert all(len(line) <= 40 for name in names for line in name.split("<br>"))


def test_layer_0_is_at_the_bottom_or_on_top():
    for plot in (MAPS[0].plot, lambda **o: plot_methods({"a": MAPS[0]}, **o),
                 lambda **o: plot_slider({"a": MAPS[0]}, **o)):  # fmt: skip
        axes = plot().layout.yaxis, plot(first_layer="top").layout.yaxis
        assert [axis.range for axis in axes] == [(-0.5, 5.5), (5.5, -0.5)]
        assert all("0 reads the input" in axis.title.text for axis in axes)
        with pytest.raises(SettingError, match="first_layer must be one of .* got 'left'"):
            plot(first_layer="left")


@pytest.mark.parametrize("n_heads", [4, 9, 32, 64])
def test_names_of_heads_are_upright_and_apart(n_heads):
    found = dataclasses.replace(MAPS[0], pair_values=torch.rand(8, 2, n_heads).double())
    axis = found.plot().layout.xaxis
    assert axis.tickangle == 0 and axis.tickvals[0] == "H0" and 3 < len(axis.tickvals) <= 12


def test_of_names_that_would_overlap_one_is_left_out():
    same = torch.zeros(6, 4).double()
    same[0, :3] = torch.tensor([1.0, 1.0001, 1.0002])
    heads = plot_agreement(
        compare(
            [
                dataclasses.replace(
                    MAPS[0], pair_values=same.expand(8, 6, 4) + 0.01 * torch.rand(8, 6, 4)
                ),
                MAPS[1],
            ],
            names=["a", "b"],
        )
    ).data[0]
    named = [text for text in heads.text if text]
    assert 0 < len(named) == len(set(named)) <= 10


def made_report():
    """Two rows, two modes, an instruction, five random sets: numbers from a generator."""
    generator = torch.Generator().manual_seed(0)

    def result(name, *, row=0, mode=None, brief=False, **more):
        odds, losses = (torch.rand(size, generator=generator) for size in ((8, 2), 5))
        items = {"token_log_odds": odds[:, 0].tolist()}
        items |= {} if brief else {"target_log_odds": odds.tolist(), "damage_loss": losses.tolist()}
        heads = ("L0H1",) if mode else ()
        return ConditionResult(
            name=name, token=f"late, seed {row}", mode=mode, heads=heads, items=items, **more
        )

    odds = Measure("token_log_odds", "BiasToken log-odds", "nats", "injected", "mean", "original")
    steered = result("steered, mean", mode="mean")
    # The same heads with another row: what is about targets is the same.
    again = result("steered, mean, seed 1", row=1, mode="mean")
    again = dataclasses.replace(
        again, items={**steered.items, "token_log_odds": again.items["token_log_odds"]}
    )
    return Report(
        bias="late", attribute="always late", model="tiny", token_text="<T>",
        targets=("Italy", "Peru"),
        measured=(odds, Measure("target_log_odds", "targets log-odds", "nats"),
                  Measure("damage_loss", "loss on neutral text", "nats per token")),
        asked={}, clusters={}, floors={},
        results=(
            result("original", row="0, untrained"), result("injected"),
            result("injected, seed 1", row=1, brief=True), steered, again,
            result("paper, <zero>", mode="zero"), result("asked, persona", instruction="persona"),
            *(result(f"steered, mean: random {i}", mode="mean", control_of="steered, mean")
              for i in range(5)),
        ),
        settings={"n_prompts": 8}, versions={},
    )  # fmt: skip


def test_the_frontier_holds_what_each_condition_takes_and_costs():
    report = made_report()
    figure = plot_frontier(report)
    of_token = {trace.name: trace for trace in figure.data if trace.xaxis == "x"}
    of_targets = {trace.name: trace for trace in figure.data if trace.xaxis == "x2"}
    steered = {"steered, mean", "steered, mean, seed 1", "paper, &lt;zero&gt;", "asked, persona"}
    assert set(of_token) == {*steered, "random heads"}
    own = report.change("injected, seed 1", "token_log_odds", "steered, mean, seed 1")
    assert of_token["steered, mean, seed 1"].y[0] == own.estimate  # from the row of that seed
    assert set(of_targets) == {*steered, "random heads"} - {"steered, mean, seed 1"}
    assert len(of_targets.pop("random heads").x) == len(of_token["random heads"].x) == 5
    for name, trace in of_targets.items():
        cost = report.change(unescape(name), "damage_loss", "original")
        fall = report.change("original", "target_log_odds", unescape(name))
        assert (trace.x[0], trace.y[0]) == (cost.estimate, fall.estimate)
        assert trace.error_y.array[0] == pytest.approx(fall.high - fall.estimate)


def test_conditions_and_targets_hold_the_means_of_a_report():
    report = made_report()
    frame = report.to_df()
    tokens, drawn, targets, drawn_targets = report.plot().data
    names = list(map(unescape, tokens.y))
    assert names == [r.name for r in report.results if not r.control_of]
    assert list(tokens.x) == pytest.approx(list(frame.loc[names, "token_log_odds"]))
    assert "injected, seed 1" not in targets.y  # of which nothing else was measured
    for trace, key in ((drawn, "token_log_odds"), (drawn_targets, "target_log_odds")):
        means = report.values("steered, mean: random", key).mean(0)
        assert list(trace.x) == pytest.approx(means.tolist())
        assert set(trace.y) == {"steered, mean: random"}
    by_target = report.by_target()
    for trace in plot_targets(report).data:
        assert dict(zip(trace.y, trace.x, strict=True)) == pytest.approx(
            by_target[unescape(trace.name)].to_dict()
        )
    for trace, name in zip(
        plot_comparison([report, dataclasses.replace(report, bias="<i>")]).data,
        ("late", "&lt;i&gt;"),
        strict=True,
    ):
        changes = [
            report.change(name, "token_log_odds", "injected").estimate
            for name in ("steered, mean", "steered, mean, seed 1", "paper, <zero>",
                         "steered, mean: random")
        ]  # fmt: skip
        assert trace.name == name and list(trace.x) == pytest.approx(changes)


MACHADO = {  # Machado, Oliveira and Fernandes 2009, severity 1: what dichromats see, in linear RGB
    "red-blind": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                  [-0.003882, -0.048116, 1.051998]],
    "green-blind": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                    [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
          [0.0193339, 0.1191920, 0.9503041]]  # fmt: skip


def lab(colour, seen):
    """CIE L*a*b* (D65) of an sRGB colour as somebody sees it."""
    rgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]).double()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (torch.tensor(seen).double() @ linear).clamp(0, 1)
    xyz = torch.tensor(TO_XYZ).double() @ linear / torch.tensor([0.95047, 1, 1.08883]).double()
    x, y, z = torch.where(xyz > 216 / 24389, xyz ** (1 / 3), 841 / 108 * xyz + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("who", MACHADO)
def test_colours_of_series_are_apart_for_the_colour_blind(who):
    seen = torch.stack([lab(colour, MACHADO[who]) for colour in COLOURS])
    assert torch.pdist(seen).min() > 25  # about ten just noticeable differences


def test_bars_are_apart_in_grey():
    lightness = torch.stack([lab(colour, torch.eye(3).tolist())[0] for colour in BARS])
    assert torch.pdist(lightness[:, None]).min() > 12


def test_no_two_of_many_series_look_alike():
    assert len({(look.colour, look.symbol) for look in map(Series.of, range(49))}) == 49


def test_red_is_toward_the_stereotype_and_said_so():
    for figure in (MAPS[0].plot(), plot_methods({"a": MAPS[0], "b": MAPS[1]}),
                   plot_slider({"0": MAPS[0], "1": MAPS[1]})):  # fmt: skip
        maps = [trace for trace in figure.data if trace.type == "heatmap"]
        assert all(trace.zmid == 0 and trace.zmax == -trace.zmin > 0 for trace in maps)
        assert all(trace.reversescale for trace in maps)  # of RdBu: red is high
        assert maps[0].colorscale[0][1] == "rgb(103,0,31)"
        bar = maps[0].colorbar
        words = f"{bar.title.text} {' '.join(bar.ticktext or ())}"
        assert "delta-logit" in words and "red: toward it" in figure.layout.title.subtitle.text
        assert maps[0].showscale is not False
