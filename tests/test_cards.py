"""What a notebook shows: cards of results, and settings with their fields."""

import dataclasses
import inspect
import subprocess
import sys
from html import unescape
from typing import get_args, get_type_hints

import pytest
from test_compare import SIGNAL, noisy, scores
from test_figures import DAMAGE, SWEEP
from test_injection_report import GOOD
from test_plots import made_report

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Condition,
    agreement,
    allowed,
    compare,
    list_biases,
    load_bias,
    seed_overlap,
    select_heads,
    significance,
)
from biasgym_tl.errors import SettingError
from biasgym_tl.notebook import MOST_ROWS, card, described
from biasgym_tl.scoping.scores import EFFECTS
from biasgym_tl.steering.budget import BudgetSearch

MAPS = [scores(noisy(SIGNAL, 8, 0.1, seed)) for seed in range(3)]
DIFFERENCE = scores(noisy(SIGNAL, 8, 0.1, 0), neutral=0.1 * noisy(SIGNAL, 8, 0.1, 1)[:, None])


@pytest.mark.parametrize(
    ("result", "numbers"),
    [
        (
            MAPS[0],
            [f"<td>{MAPS[0].top(1)[0]}</td>", f"{MAPS[0].values.max():.3g}", "select_heads("],
        ),
        (select_heads(MAPS[0], 3), [str(head) for head in MAPS[0].top(3)]),
        (SWEEP, ["<td>1.5</td>", "<td>0.25</td>"]),
        (DAMAGE, [f"<td>{DAMAGE.loss.mean(0).max():.3g}</td>"]),
        (GOOD, ["no known failure", str(GOOD.log_odds), f"{GOOD.keywords.estimate:.0%}"]),
        (made_report(), ["BiasToken log-odds (nats)", "steered, mean: random", "to_html"]),
        (compare(MAPS[:2], names=["a", "b"]), ["<td>a / b</td>", "reliability: a"]),
        (seed_overlap(MAPS, k_per_seed=5), ["at least", "by chance"]),
        (significance(DIFFERENCE, n_flips=99, n_resamples=99), ["<th>q</th>"]),
        (agreement([0.0, 1.0, 3.0], [0.0, 1.0, 2.0]), ["second 3", "kappa"]),
        (list_biases(), ["always late", "<td>country</td>", "load_bias("]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_shows_its_numbers_and_how_to_go_on(result, numbers):
    shown = unescape(result._repr_html_())
    for number in [*numbers, "Go on with <code>"]:
        assert number in shown
    assert len(shown) < 5000 and "<script" not in shown


def test_what_was_written_by_others_is_escaped():
    evil = "<img src=x onerror=alert(1)>"
    report = dataclasses.replace(made_report(), attribute=evil, model=evil)
    token = dataclasses.replace(MAPS[0], bias=evil, model=evil)
    named = compare(MAPS[:2], names=[evil, "b"])
    for found in (
        report,
        token,
        select_heads(token, 3),
        named,
        agreement([0.0, 1.0], [0.0, 1.0], names=(evil, "b")),
    ):
        assert "<img" not in found._repr_html_() and "&lt;img" in found._repr_html_()
    assert "<img" not in card(evil, [[evil], [evil]], [evil], [evil])


def test_a_long_table_says_how_much_is_left_out():
    rows = [["n"], *([i] for i in range(20))]
    shown = card("all", rows)
    assert shown.count("<td>") == MOST_ROWS and "8 more rows" in shown
    assert "more rows" not in card("few", rows[:3])


def test_names_of_biases_are_a_list():
    names = list_biases()
    assert isinstance(names, list) and names == sorted(names) and "late" in names
    assert load_bias(names[0]).name == names[0]


@pytest.mark.parametrize("settings", [BiasScope, BiasInject, BudgetSearch])
def test_literal_fields_take_their_values_and_no_others(settings):
    hints = get_type_hints(settings)
    literals = {name: get_args(hint) for name, hint in hints.items() if "Literal" in str(hint)}
    assert literals
    for name, values in literals.items():
        assert getattr(settings(), name) in values
        with pytest.raises((SettingError, ValueError), match=f"{name} must be one of .*got 'x'"):
            settings(**{name: "x"})


@pytest.mark.parametrize("settings", [BiasScope, BiasInject, BudgetSearch, Condition])
def test_help_says_what_each_field_is(settings):
    doc = settings.__doc__
    fields = {field.name for field in dataclasses.fields(settings)} - {"name", "row"}
    assert fields <= {line.split(":")[0] for line in doc.splitlines()}
    assert "``" not in doc.split("Fields:")[1]


def test_the_signature_names_the_allowed_values():
    shown = str(inspect.signature(BiasScope))
    assert "contrast: \"Literal['biased', 'difference']\" = 'biased'" in shown


def test_a_class_without_source_stays_as_it_is():
    made = type("Made", (), {"__doc__": "Made here."})
    assert described(made).__doc__ == "Made here."


def test_plots_and_version_are_there_at_first_use():
    code = (
        "import sys, biasgym_tl; assert 'plotly' not in sys.modules; biasgym_tl.__version__; "
        "assert callable(biasgym_tl.plots.plot_heads)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [
        (BiasScope, "method", allowed.METHODS),
        (BiasScope, "contrast", allowed.CONTRASTS),
        (BiasScope, "neutral", allowed.NEUTRAL),
        (BiasInject, "choose_by", allowed.EPOCH_CHOICES),
        (BudgetSearch, "mode", allowed.MODES),
    ],
)
def test_the_command_line_knows_the_values_of_fields(settings, field, values):
    assert get_args(get_type_hints(settings)[field]) == values


def test_every_method_has_its_effect_in_words():
    assert tuple(EFFECTS) == allowed.METHODS
