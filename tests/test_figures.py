"""A figure is drawn again from the results that it names, and says what it shows."""

import dataclasses
import json
import re
import struct

import pytest
import torch
from test_compare import SIGNAL, noisy, scores
from typer.testing import CliRunner

from biasgym_tl.cli import app
from biasgym_tl.errors import StoreError
from biasgym_tl.figures import PLOTS, Recipe, draw, keep_figure, load_any, recipe, redraw
from biasgym_tl.scoping.damage import HeadDamage
from biasgym_tl.scoping.k_sweep import KSweep
from biasgym_tl.store import kind_of, read_json, save_result, write_json

ONE, TWO = (scores(noisy(SIGNAL, 8, 0.1, seed)) for seed in range(2))
SWEEP = KSweep(
    ks=(1, 5), benefit=torch.tensor([[1.0, 2.0], [3.0, 5.0]]).double(),
    damage=torch.tensor([[0.0, 0.1], [0.2, 0.3]]).double(), method="direct", mode="mean",
    bias="late", token="late, seed 0", model="tiny", settings={}, versions={},
)  # fmt: skip
DAMAGE = HeadDamage(
    loss=torch.rand(2, 6, 4), facts=torch.rand(3, 6, 4), mode="mean", model="tiny",
    countries=("Italy",) * 3, versions={},
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_png(monkeypatch):
    """A browser takes seconds for each."""
    monkeypatch.setattr("biasgym_tl.figures.write_pngs", lambda figures: "no PNG here")


@pytest.fixture
def folder(tmp_path):
    for name, result in (("one", ONE), ("two", TWO), ("sweep", SWEEP), ("damage", DAMAGE)):
        result.save(tmp_path / "results" / name)
    return tmp_path


def test_figures_come_back_from_their_recipes(folder):
    named = {"first": "results/one.safetensors", "<second>": "results/two.safetensors"}
    (folder / "sub").mkdir()
    files = [f"results/{name}.safetensors" for name in ("one", "damage")]
    recipes = {
        "map": recipe("heads", ["results/one.safetensors"], mark_top=3),
        "maps": recipe("methods", named),
        "both": recipe("agreement", named),
        "sub/k": recipe("k sweep", ["../results/sweep.safetensors"]),
        "cost": recipe("benefit and damage", files, cost="loss"),
    }
    assert draw(folder, recipes) == "no PNG here"
    pages = sorted(folder.rglob("*.html"))
    before = {path: path.read_text("utf-8") for path in pages}
    assert len(before) == 5 and "&lt;second&gt;" in before[folder / "maps.html"]
    kept = read_json(folder / "map.json")
    assert kept["plot"] == "heads" and kept["options"] == {"mark_top": 3}
    (file,) = kept["of"].values()
    assert file == "results/one.safetensors" and kept["versions"]["torch"]
    for path in pages:
        path.unlink()
    assert redraw(folder) == (["both", "cost", "map", "maps", "sub/k"], "no PNG here")
    assert {path: path.read_text("utf-8") for path in pages} == before


def test_a_figure_whose_results_are_not_kept_is_drawn_as_it_was(folder):
    figure = ONE.plot(mark_top=2)
    keep_figure(folder / "one.figure.json", figure)
    draw(folder, {"one": recipe("as it was drawn", ["one.figure.json"])})
    loaded = load_any(folder / "one.figure.json")
    assert json.loads(loaded.to_json()) == json.loads(figure.to_json())
    draw(folder, {"map": recipe("heads", ["results/one.safetensors"], mark_top=2)})
    pages = [(folder / f"{name}.html").read_text("utf-8") for name in ("one", "map")]
    assert pages[0].replace("one", "map").count("delta-logit") == pages[1].count("delta-logit")


def test_the_command_says_what_it_draws(folder):
    draw(folder, {"map": recipe("heads", ["results/one.safetensors"])})
    result = CliRunner().invoke(app, ["figures", str(folder)])
    assert result.exit_code == 0 and result.output == "map\nno PNG here\n"


def test_what_cannot_be_drawn_is_refused(folder):
    with pytest.raises(StoreError, match="folder must hold figures with their recipes, got none"):
        redraw(folder)
    one = ["results/one.safetensors"]
    with pytest.raises(StoreError, match="plot must be one of .*'heads'.* got 'pie'"):
        draw(folder, {"x": recipe("pie", one)})
    with pytest.raises(StoreError, match="plot 'heads' must fit its options, but: .*'depth'"):
        draw(folder, {"x": recipe("heads", one, depth=3)})
    with pytest.raises(StoreError, match="result file must exist, got .*gone.safetensors"):
        draw(folder, {"x": recipe("heads", ["gone.safetensors"])})
    save_result(folder / "other", "Something", {"a": torch.zeros(1)}, {})
    with pytest.raises(StoreError, match=r"must hold one of \['BiasToken'.* got 'Something'"):
        load_any(folder / "other.safetensors")
    (folder / "broken.safetensors").write_text("no tensors")
    with pytest.raises(StoreError, match="broken.safetensors' must be a safetensors file, but"):
        kind_of(folder / "broken.safetensors")
    write_json(folder / "list.json", [1])
    assert kind_of(folder / "list.json") is None
    assert not list(folder.glob("x.*"))


def test_equal_results_load_equal(folder):
    loaded = load_any(folder / "results" / "one.safetensors")
    for field in dataclasses.fields(ONE):
        here, there = getattr(loaded, field.name), getattr(ONE, field.name)
        assert torch.equal(here, there) if isinstance(here, torch.Tensor) else here == there


def test_every_shipped_recipe_names_a_plot_and_files_that_exist(pytestconfig):
    figures = pytestconfig.rootpath / "figures"
    found = 0
    for path in figures.rglob("*.json"):
        values = json.loads(path.read_text("utf-8"))
        if isinstance(values, dict) and {"plot", "of", "options"} <= set(values):
            found += 1
            assert values["plot"] in PLOTS
            for file in values["of"].values():
                assert (path.parent / file).is_file(), f"{path}: {file}"
            assert path.with_suffix(".html").is_file()
            shown = Recipe(*(values[key] for key in Recipe._fields)).figure(path.parent).layout
            size = struct.unpack(">II", path.with_suffix(".png").read_bytes()[16:24])
            assert size == (2 * shown.width, 2 * shown.height), path
    assert found >= 15
    assert not [path for path in figures.rglob("*.png") if not path.with_suffix(".json").is_file()]


def test_figures_with_a_dot_in_their_name_do_not_overwrite_one_another(folder):
    one = ["results/one.safetensors"]
    draw(folder, {f"lr-0.{i}": recipe("heads", one, mark_top=i) for i in (1, 2, 3)})
    draw(folder, {"lr-0": recipe("heads", one)})
    names = {"lr-0", "lr-0.1", "lr-0.2", "lr-0.3"}
    assert {path.name for path in folder.glob("lr*")} == {
        f"{name}.{ending}" for name in names for ending in ("html", "json")
    }
    assert read_json(folder / "lr-0.2.json")["options"] == {"mark_top": 2}
    assert set(redraw(folder)[0]) == names


def test_a_recipe_reads_and_writes_only_inside_the_folder(folder):
    inside, one = folder / "sub", ["results/one.safetensors"]
    inside.mkdir()
    (inside / "link.safetensors").symlink_to(folder / "results" / "one.safetensors")
    for file in ("../results/one.safetensors", str(folder / one[0]), "link.safetensors"):
        with pytest.raises(StoreError, match="files of a figure must lie in its folder"):
            draw(inside, {"x": recipe("heads", [file])})
        write_json(inside / "x.json", recipe("heads", [file])._asdict())
        with pytest.raises(StoreError, match="files of a figure must lie in its folder"):
            redraw(inside)
    for name in ("../y", str(folder / "y")):
        with pytest.raises(StoreError, match="files of a figure must lie in its folder"):
            draw(inside, {name: recipe("heads", one)})
    assert {path.name for path in folder.iterdir()} == {"results", "sub"}


@pytest.mark.parametrize(
    "wrong", [{"of": ["a"]}, {"of": {"a": 1}}, {"plot": 3}, {"plot": ["heads"]}, {"options": []}]
)
def test_a_recipe_of_other_types_is_refused(folder, wrong):
    write_json(folder / "x.json", {**recipe("heads", ["a.safetensors"])._asdict(), **wrong})
    with pytest.raises(StoreError, match="recipe of a figure must name a plot, files by name"):
        redraw(folder)


def test_options_that_a_plot_cannot_use_are_refused(folder):
    one = ["results/one.safetensors"]
    for options in ({"mark_top": "3"}, {"mark_top": [1]}, {"seeds": 1}, {"damage": "x"}):
        with pytest.raises(StoreError, match="plot 'heads' must fit its options, but"):
            draw(folder, {"x": recipe("heads", one, **options)})


MARKUP = """<img src=x onerror=alert(1)><a href="https://a.b">x</a>"""


def tags(page):
    """Elements that text of ours became, in the texts of a figure as plotly reads them."""
    return [tag for tag in ("<img", "<a ", r"\u003cimg", r"\u003ca ") if tag in page]


def test_names_from_files_do_not_become_markup(folder):
    for name in ("one", "two"):
        path = folder / "results" / f"{name}.safetensors"
        found = load_any(path)
        settings = {**found.settings, "method": "attribution_patching", "reference": MARKUP}
        dataclasses.replace(found, bias=MARKUP, model=MARKUP, token=MARKUP, settings=settings).save(
            path
        )
    damage = folder / "results" / "damage.safetensors"
    dataclasses.replace(load_any(damage), model=MARKUP, mode=MARKUP).save(damage)
    sweep = dataclasses.replace(SWEEP, bias=MARKUP, model=MARKUP, method=MARKUP, mode=MARKUP)
    sweep.save(folder / "results" / "sweep")
    figure = {"data": [{"y": [1], "name": MARKUP}], "layout": {"title": {"text": f"a<br>{MARKUP}"}}}
    write_json(folder / "drawn.figure.json", {"kind": "Figure", "figure": figure})
    both = {MARKUP: "results/one.safetensors", "b": "results/two.safetensors"}
    draw(
        folder,
        {
            'x" onclick="alert(1)': recipe("heads", ["results/one.safetensors"], title=MARKUP),
            "methods": recipe("methods", both),
            "agreement": recipe("agreement", both),
            "slider": recipe("slider", both, what=MARKUP),
            "sweep": recipe("k sweep", ["results/sweep.safetensors"]),
            "cost": recipe(
                "benefit and damage", ["results/one.safetensors", "results/damage.safetensors"]
            ),
            "drawn": recipe("as it was drawn", ["drawn.figure.json"]),
        },
    )
    pages = list(folder.glob("*.html"))
    assert len(pages) == 7
    for page in pages:
        text = page.read_text("utf-8")
        body = text[text.rindex("Plotly.newPlot") :]
        assert not tags(body), page.name
        assert not re.search(r'id="[^"]*"\s+onclick', text)
