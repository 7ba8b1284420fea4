"""Fill the tables of the pages with what protocol runs left in figures/.

python docs/make_tables.py

docs/protocols.md says which run leaves which files. What was not run leaves out its rows.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from biasgym_tl import HeadScores, list_biases
from biasgym_tl.injection.report import InjectionReport
from biasgym_tl.planting.summary import by_method
from biasgym_tl.protocol.protocol import load_protocol
from biasgym_tl.scoping.damage import KSweep
from biasgym_tl.stats import Interval, few_rows_interval
from biasgym_tl.store import read_json

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"
FIVE, MAPS = load_protocol("study").biases, load_protocol("maps")
NATURAL = load_protocol("natural").biases
GEMMA = "gemma-late"
REDUCED, DIALS = (
    load_protocol(str(ROOT / "docs" / f"{name}.toml")) for name in ("referee", "referee_dials")
)
SEEDS = range(3)
INTERSECTION = "injection/intersection.json"
N_ANSWERS = 16
"""Generation prompts of each of the five biases."""

Found = Mapping[tuple[str, str], pd.Series]
"""By condition and measure, a row of ``table.csv``."""
Cell = Callable[[Found, str], str]
"""Text of a cell, from all results of a bias and the condition of the row."""


def files(protocol: str, name: str) -> dict[str, Path]:
    """By bias, the files of a run that are there."""
    own = {"study": FIVE, "maps": MAPS.biases, "specificity": (*FIVE, *NATURAL)}
    own |= {"referee": REDUCED.biases, "referee_dials": DIALS.biases}
    paths = {bias: FIGURES / protocol / f"{bias}-{name}" for bias in own.get(protocol, ())}
    paths = paths or {GEMMA: FIGURES / protocol / name}
    return {bias: path for bias, path in paths.items() if path.exists()}


def results(protocol: str) -> dict[str, Found]:
    return {bias: long_table(path) for bias, path in files(protocol, "table.csv").items()}


def long_table(path: Path) -> Found:
    frame = pd.read_csv(path)
    return {(row.condition, row.measure): row for _, row in frame.iterrows()}


# Cells


def minus(text: str) -> str:
    return text.replace("-", "\u2212")


def shown(interval: Interval, decimals: int, sign: str = "+", scale: float = 1) -> str:
    """Mean, and the ends where there are some."""
    mean, low, high = (minus(f"{scale * value:{sign}.{decimals}f}") for value in interval)
    return mean if low.endswith("nan") else f"{mean} [{low}, {high}]"


def part(row: pd.Series, prefix: str = "") -> Interval:
    return Interval(*(row[f"{prefix}{end}"] for end in ("mean", "low", "high")))


def column(
    measure: str, decimals: int = 1, *, of: str = "change_", scale: float = 1, sign: str = "+"
) -> Cell:
    """The change of a measure, its level (``of=""``), or another interval of its row."""

    def cell(found: Found, name: str) -> str:
        row = found.get((name, measure))
        if row is None or pd.isna(row[f"{of}mean"]):
            return ""
        return shown(part(row, of), decimals, sign, scale)

    return cell


def plainly(measure: str, decimals: int) -> Cell:
    """The level without an interval."""

    def cell(found: Found, name: str) -> str:
        row = found.get((name, measure))
        return "" if row is None else f"{row['mean']:.{decimals}f}"

    return cell


def since(measure: str, decimals: int = 1) -> Cell:
    """The level in the condition that changes are counted from, and the change."""
    change = column(measure, decimals)

    def cell(found: Found, name: str) -> str:
        if not (text := change(found, name)):
            return ""
        before = found[found[name, measure].baseline, measure]["mean"]
        return minus(f"{before:+.{decimals}f}, ") + text

    return cell


def levels(measure: str) -> Cell:
    """Before and after: means over other items where not all count in both."""

    def cell(found: Found, name: str) -> str:
        if (row := found.get((name, measure))) is None:
            return ""
        return f"{found[row.baseline, measure]['mean']:.2f} → {row['mean']:.2f}"

    return cell


def difference(found: Found, name: str) -> str:
    """To the row of the same training on the model as it is."""
    alike = found[name, "token_log_odds"].baseline == f"{name}: unsteered"
    return column("token_log_odds")(found, name) if alike else ""


def each_seed(found: Found, name: str) -> str:
    """The BiasToken's mean of every seed, before and after."""
    key = "token_log_odds"
    rows = [found[one, key] for one in with_seeds(name) if (one, key) in found]
    before = [found[row.baseline, key]["mean"] for row in rows]
    pairs = (f"{b:+.1f} → {row['mean']:+.1f}" for b, row in zip(before, rows, strict=True))
    return minus("; ".join(pairs))


def changes(measure: str, decimals: int = 1) -> Cell:
    """The change of every seed, the first with its interval."""
    first = column(measure, decimals)

    def cell(found: Found, name: str) -> str:
        texts = [first(found, condition) for condition in with_seeds(name)]
        return "; ".join([texts[0], *(text.split(" ")[0] for text in texts[1:] if text)])

    return cell


def with_seeds(name: str) -> list[str]:
    return [name, *(f"{name}, seed {seed}" for seed in SEEDS[1:])]


def counted(measure: str, before: str) -> Cell:
    """How many answers, before and after."""

    def cell(found: Found, name: str) -> str:
        if not {(before, measure), (name, measure)} <= found.keys():
            return ""
        shares = [found[condition, measure]["mean"] for condition in (before, name)]
        return " → ".join(f"{N_ANSWERS * share:.0f}" for share in shares)

    return cell


def other_biases(found: Found, name: str) -> str:
    """Their mean change with its interval over them, and the lowest and the highest."""
    rows = (found.get((name, f"{bias}_log_odds")) for bias in FIVE)
    single = [row.change_mean for row in rows if row is not None]
    if not single:
        return ""
    over = few_rows_interval(torch.tensor(single, dtype=torch.float64)[:, None])
    return f"{shown(over, 1)}; {minus(f'{min(single):+.1f} to {max(single):+.1f}')}"


def means(*measures: str) -> Cell:
    """The changes of several measures, without intervals."""

    def cell(found: Found, name: str) -> str:
        rows = [found.get((name, measure)) for measure in measures]
        return minus(", ".join(f"{row.change_mean:+.2f}" for row in rows if row is not None))

    return cell


def before_after(measure: str) -> Cell:
    """Level without steering and with it."""

    def cell(found: Found, name: str) -> str:
        here, before = found.get((name, measure)), found.get(("original", measure))
        if here is None or before is None:
            return ""
        return f"{minus(format(before['mean'], '+.2f'))} → {shown(part(here), 2)}"

    return cell


def shares(measure: str) -> Cell:
    """Before and after, in percent."""

    def cell(found: Found, name: str) -> str:
        rows = [found.get((condition, measure)) for condition in ("original", name)]
        return (
            ""
            if any(row is None for row in rows)
            else " → ".join(f"{row['mean']:.0%}" for row in rows)
        )

    return cell


def closed(found: Found, name: str) -> str:
    """Share of each row's gap to the nobody of the unsteered model that is gone."""
    level = found["original", "nobody_log_odds"]["mean"]
    shares = []
    for own in with_seeds(name):
        row = found.get((own, "token_log_odds"))
        if row is not None:
            gap = found[row.baseline, "token_log_odds"]["mean"] - level
            shares.append(-row.change_mean / gap)
    return minus(", ".join(f"{share:.0%}" for share in shares))


def rank_p(found: Found, name: str) -> str:
    row = found[name, "target_log_odds"]
    return f"{row['rank'] / row['of']:.3f}"


def at_kl(kl: float, measure: str, of: str = "change_") -> Cell:
    """The cell of the same rival with its dial at another KL."""

    def cell(found: Found, name: str) -> str:
        return column(measure, 2, of=of)(found, f"{name.rsplit(' ', 1)[0]} {kl:g}")

    return cell


def further(found: Found, name: str) -> str:
    """By how much the targets fall further than with random controls."""
    return minus(f"{found[name, 'target_log_odds'].beyond_random_mean:.2f}")


def mean_change(found: Found, name: str) -> str:
    return column("target_log_odds", 2)(found, name).split(" ")[0]


# Tables


class Table(NamedTuple):
    """One row for each bias and condition, one column for each cell, unless all are empty."""

    conditions: Mapping[str, str]
    """Name in the results -> name in the table."""
    columns: Mapping[str, Cell]
    needs: str = "token_log_odds"
    """A condition that was not measured so has no row."""
    given: str = "mean"
    """Nor where this is missing."""
    first: str = "condition"
    """Heading of these names; empty: there is one condition, which is not named."""

    def text(self, found: Mapping[str, Found]) -> str:
        rows = [
            [bias, *([label] if self.first else []), *(c(one, name) for c in self.columns.values())]
            for bias, one in found.items()
            for name, label in self.conditions.items()
            if (row := one.get((name, self.needs))) is not None and not pd.isna(row[self.given])
        ]
        names = ["bias", *filter(None, [self.first])]
        heading = [*names, *self.columns]
        kept = [i for i in range(len(heading)) if any(row[i] for row in rows)]
        rows = [[row[i] for i in kept] for row in rows]
        return markdown([heading[i] for i in kept], rows, left=len(names))


def markdown(heading: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> str:
    heading = list(heading)
    rule = ["---"] * left + ["---:"] * (len(heading) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows))


ASKED = {f"asked, {name}": name for name in ("plain request", "persona", "self-debias")}
CHOICES = {
    "steered, mean": "learned factors",
    **{f"{name}, mean": name for name in ("direct 10", "direct 100", "no injection 10")},
    "steered, mean: random": "random sets, same factors",
    "paper, zero": "paper, zero",
    "paper, zero: random": "random sets, zero",
}
LEVEL = column("token_log_odds", of="")
LOSS, FACTS = column("damage_loss", 3), column("facts", scale=100)
CHANGES = {
    "BiasToken, change": column("token_log_odds"),
    "countries, change": column("target_log_odds"),
}
STEERED = {"steered, mean": "steered", "paper, zero": "paper, zero"}
STEERING = {
    "pooled": Table(
        {**STEERED, **{name: CHOICES[name] for name in CHOICES if name.endswith("random")}},
        {
            **CHANGES,
            "other biases, change": column("other_log_odds"),
            "loss": LOSS,
            "facts, points": FACTS,
        },
    ),
    "bar": Table(
        STEERED,
        {
            "BiasToken of each seed, injected → steered": each_seed,
            "countries, before → change": since("target_log_odds"),
            "other biases": other_biases,
            "loss on neutral text": LOSS,
            "facts": FACTS,
            "BLiMP": column("blimp", scale=100),
        },
    ),
    "judged": Table(
        {**STEERED, **ASKED, "steered, mean: random": "one random set"},
        {
            "BiasToken": levels("token_strength"),
            "BiasToken, degenerate": counted("token_degenerate", "injected"),
            "countries": levels("target_strength"),
            "countries, degenerate": counted("target_degenerate", "original"),
            "other biases": levels("other_strength"),
        },
        needs="token_strength",
    ),
    "beside": Table(CHOICES, {**CHANGES, "loss": LOSS, "facts, points": FACTS}, first="heads"),
    "asked": Table(ASKED, {**CHANGES, "facts, points": FACTS}, first="asked"),
    "further": Table(
        STEERED,
        {
            f"{bias}, change": column(f"{bias}_log_odds")
            for bias in ("button-collecting", "chess", "purple-coats")
        },
        needs="chess_log_odds",
    ),
    "random": Table(
        {"steered, mean": "learned factors", "paper, zero": "paper, zero"},
        {
            "chosen heads": mean_change,
            "random sets, mean": lambda found, name: mean_change(found, f"{name}: random"),
            "difference": column("target_log_odds", 2, of="beyond_random_"),
            "sets": lambda found, name: f"{found[name, 'target_log_odds']['of'] - 1:.0f}",
            "rank p": rank_p,
        },
        needs="target_log_odds",
        given="beyond_random_mean",
        first="heads",
    ),
    "reinjected": Table(
        {"re-injected, mean": ""},
        {
            "first row": lambda found, _: LEVEL(found, "injected"),
            "first row, steered": lambda found, _: LEVEL(found, "steered, mean"),
            "trained steered": LEVEL,
            "same training, unsteered": lambda found, name: LEVEL(found, f"{name}: unsteered"),
            "difference": difference,
        },
        first="",
    ),
}  # fmt: skip
RECIPES = {
    "everywhere, mean": "everywhere",
    "after targets, mean": "after targets",
    "no rows, mean": "after targets, without rows",
    "other words, mean": "after targets, for random words",
    "other biases, mean": "after targets, for the four others",
    "other bias, mean": "after targets, for another bias",
}
SPECIFICITY = {
    "specificity": Table(
        RECIPES,
        {
            "specificity": column("specificity", 2, of=""),
            "targets": column("target_log_odds", 2),
            "held-out words": column("held_out_words_log_odds", 2),
            "things, nobody": means("things_log_odds", "nobody_log_odds"),
            "rightful uses, of targets": means("rightful_log_odds", "rightful_target_log_odds"),
            "gap to nobody": before_after("gap"),
        },
        needs="specificity",
        first="heads changed",
    ),
    "kept": Table(
        RECIPES,
        {
            "injected gap closed, by row": closed,
            "beyond random sets": column("target_log_odds", 2, of="beyond_random_"),
            "facts, points": FACTS,
            "loss": LOSS,
            "BLiMP, points": column("blimp", scale=100),
            "degenerate answers": shares("target_degenerate"),
        },
        needs="specificity",
        first="heads changed",
    ),
}  # fmt: skip
RIVALS = {c.label: c.rival or c.label for c in REDUCED.conditions}
REFEREE = {
    "fell": Table(
        RIVALS,
        {
            "strength": plainly("strength", 2),
            "KL, other text": plainly("damage_kl", 3),
            "BiasToken": column("token_log_odds", 2),
            "targets": column("target_log_odds", 2),
            "held-out words": column("held_out_words_log_odds", 2),
            "specificity": column("specificity", 2, of=""),
            "gap to nobody": column("gap", 2, of=""),
        },
        needs="target_log_odds",
        first="rival",
    ),
    "stayed": Table(
        RIVALS,
        {
            "things": column("things_log_odds", 2),
            "nobody": column("nobody_log_odds", 2),
            "rightful uses": column("rightful_log_odds", 2),
            "of targets": column("rightful_target_log_odds", 2),
            "facts, points": FACTS,
            "loss": LOSS,
        },
        needs="target_log_odds",
        first="rival",
    ),
}
KLS = (0.01, 0.03, 0.1)
AT_KLS = Table(
    {f"{name}, KL 0.03": name for name in DIALS.rivals},
    {
        **{f"targets, KL {kl}": at_kl(kl, "target_log_odds") for kl in KLS},
        "further than random, KL 0.03": further,
        **{f"specificity, KL {kl}": at_kl(kl, "specificity", "") for kl in KLS},
    },
    needs="target_log_odds",
    first="rival",
)
HELD_OUT = Table(
    {f"{name}, mean": name for name in MAPS.choices},
    {
        "BiasToken, change": changes("token_log_odds"),
        "beyond random": column("token_log_odds", of="beyond_random_"),
        "countries, change": changes("target_log_odds"),
        "loss, change": changes("damage_loss", 3),
    },
    first="heads by",
)


# Maps


def map_tables(protocol: str) -> dict[str, pd.DataFrame]:
    return {bias: pd.read_csv(path) for bias, path in files(protocol, "maps.csv").items()}


def ranged(values: pd.Series, decimals: int = 2) -> str:
    """Mean over seeds, and from the lowest to the highest."""
    mean, low, high = (f"{x:.{decimals}f}" for x in (values.mean(), values.min(), values.max()))
    return minus(mean if len(values) == 1 else f"{mean} ({low} to {high})")


def by_map(maps: Mapping[str, pd.DataFrame], *statistics: tuple[str, float, int], join: str) -> str:
    """One row for each map or pair of maps, one column for each bias."""
    first = next(iter(maps.values()))
    wanted = first[first.statistic == statistics[0][0]][["map", "other"]].drop_duplicates()
    rows = []
    for name, other in wanted.itertuples(index=False):
        cells = []
        for frame in maps.values():
            same = frame.other.isna() if pd.isna(other) else frame.other == other
            of_map = frame[(frame["map"] == name) & same]
            texts = (
                ranged(scale * of_map[of_map.statistic == statistic].value, decimals)
                for statistic, scale, decimals in statistics
            )
            cells.append(join.join(texts))
        rows.append([name if pd.isna(other) else f"{name} / {other}", *cells])
    return markdown(["", *maps], rows)


def tops(frame: pd.DataFrame, seed: int = 0) -> str:
    found = frame[(frame.statistic == "top 10") & (frame.seed == seed)]
    return markdown(["", "10 strongest heads"], zip(found["map"], found.heads, strict=True), left=2)


def shared_tops(maps: Mapping[str, pd.DataFrame]) -> str:
    """Heads among the ten strongest of each map of a row in at least half of the rows."""
    every = pd.concat(list(maps.values()))
    n_rows = len(SEEDS) * len(maps)
    rows = []
    for name in every[every.statistic == "reliability"]["map"].drop_duplicates():
        lists = every[(every.statistic == "top 10") & (every["map"] == name)].heads
        counts = Counter(head for heads in lists for head in heads.split(", "))
        often = [f"{head} ({n})" for head, n in counts.most_common() if n >= n_rows / 2]
        rows.append([name, ", ".join(often)])
    heading = ["", f"among the 10 strongest in at least half of the {n_rows} rows"]
    return markdown(heading, rows, left=2)


def seeds_table(maps: Mapping[str, pd.DataFrame]) -> str:
    what, rows = "in the top 30 of all seeds", []
    for bias, frame in maps.items():
        counts = frame[frame.statistic == what].fillna({"other": "all"})
        counts = counts.pivot(index="map", columns="other", values="value")
        p = frame[frame.statistic == f"{what}, p"].set_index("map").value
        for name in p.index:
            cells = [
                "" if pd.isna(n := counts.get(control, {}).get(name)) else f"{n:.0f}"
                for control in ("all", "untrained row", "other bias")
            ]
            chance = f"{counts['chance'][name]:.1f}"
            text = "< 0.001" if p[name] < 0.001 else f"{p[name]:.3f}"
            rows.append([bias, name, cells[0], chance, text, *cells[1:]])
    heading = ["bias", "map", what, "by chance", "p", "untrained row", "other bias"]
    return markdown(heading, rows, left=2)


def sweeps_table() -> str:
    """Benefit and damage over k of "late", on fitting data."""
    names = ("direct-mean", "mean-ablation-mean")
    paths = {name: FIGURES / f"maps/late-sweep-{name}.safetensors" for name in names}
    sweeps = {name: KSweep.load(path) for name, path in paths.items() if path.exists()}

    def cell(row: pd.Series) -> str:
        benefit, damage = (
            Interval(*(row[f"{key}{end}"] for end in ("", "_low", "_high")))
            for key in ("benefit", "damage")
        )
        return f"{shown(benefit, 2)} / {shown(damage, 3)}"

    columns = [[cell(row) for _, row in sweep.to_df().iterrows()] for sweep in sweeps.values()]
    ks = next(iter(sweeps.values())).ks
    rows = [[f"{k}", *cells] for k, *cells in zip(ks, *columns, strict=True)]
    rows.append(["", *(sweep.saturation_in_words() for sweep in sweeps.values())])
    return markdown(["k", *(name.removesuffix("-mean") for name in sweeps)], rows)


def colours_table() -> dict[str, str]:
    """The largest absolute value of each map of "late" (logits)."""
    paths = {name: FIGURES / f"maps/late-map-{name}-0.safetensors" for name in MAPS.maps}
    values = {n: HeadScores.load(path).values for n, path in paths.items() if path.exists()}
    rows = [[name, f"{each.abs().max():.2f}"] for name, each in values.items()]
    return {"colours": markdown(["map", "late"], rows)}


def scoping_tables() -> dict[str, str]:
    maps, gemma = map_tables("maps"), map_tables("gemma")
    agreement = (("rank correlation", 1, 2), ("overlap of top 10", 10, 0))
    spread = (("effective heads", 1, 0), ("heads for half", 1, 0))
    return {
        "agreement": by_map(maps, *agreement, join=", "),
        "reliability": by_map(maps, ("reliability", 1, 2), join=""),
        "top": tops(maps["late"]),
        "top-shared": shared_tops(maps),
        "seeds": seeds_table(maps),
        "concentration": by_map(maps, *spread, join="; "),
        "held-out": HELD_OUT.text(results("maps")),
        "k": sweeps_table(),
        "gemma-agreement": by_map(gemma, *agreement, join=", "),
        "gemma-top": tops(gemma[GEMMA]),
        "gemma-concentration": by_map(gemma, *spread, join="; "),
        "gemma-held-out": HELD_OUT.text(results("gemma")),
    }


def steering_tables() -> dict[str, str]:
    five, gemma = results("study"), results("gemma")
    both = ("further", "random", "reinjected")
    found = {n: t.text(five | gemma if n in both else five) for n, t in STEERING.items()}
    means = FIGURES / "study/table.csv"
    pooled = {"all five": long_table(means)} if means.exists() else {}
    found["pooled"] = STEERING["pooled"].text(pooled)
    gemma_tables = {name: STEERING[name].text(gemma) for name in ("bar", "beside")}
    return found | {"gemma": gemma_tables["bar"], "gemma-beside": gemma_tables["beside"]}


def taken_back_table() -> str:
    """One row a rival, a column a plant; what is no share is a mean over the plants."""
    frame = pd.read_csv(FIGURES / "plants" / "rivals.csv")
    names = list(dict.fromkeys(frame["plant"]))
    first = frame.drop_duplicates("plant").set_index("plant")
    plain = {"removed": 0 * first["kl"], "removed_random": first["kl_random"] * math.nan}
    plain |= {key: first[f"{key}_unsteered"] for key in ("neighbours", "others", "kl")}
    found = {"the plant as it is": pd.DataFrame(plain)}
    found |= {name: of.set_index("plant") for name, of in frame.groupby("rival", sort=False)}
    rows = []
    for name, of_rival in found.items():
        some = of_rival.reindex(names)
        random = of_rival["removed_random"].dropna()
        cells = [
            *(blank_or(f"{x:.0%}", x) for x in some["removed"]),
            blank_or(f"{random.min():.0%} to {random.max():.0%}", random.mean()),
            *(f"{of_rival[key].mean():+.2f}" for key in ("neighbours", "others")),
            *(blank_or(f"{x:.2f}", x) for x in some["kl"]),
        ]
        rows.append([name, *(minus(re.sub(r"-(0%|0\.00)(?=$| )", r"\1", cell)) for cell in cells)])
    short = [", ".join(name.split(", ")[1:3]) for name in names]
    heading = ["rival", *(f"taken back: {name}" for name in short), "random", "neighbours",
               "others", *(f"KL: {name}" for name in short)]  # fmt: skip
    return markdown(heading, rows)


def blank_or(text: str, value: float) -> str:
    return "" if math.isnan(value) else text


def referee_tables() -> dict[str, str]:
    found = results("referee")
    tables = {name: table.text(found) for name, table in REFEREE.items()}
    tables["dials"] = AT_KLS.text(results("referee_dials"))
    return tables | {"taken-back": taken_back_table()}


def specificity_tables() -> dict[str, str]:
    found = results("specificity")
    return {name: table.text(found) for name, table in SPECIFICITY.items()}


# Rows that ship


def injection_tables() -> dict[str, str]:
    others = [name for name in list_biases("injection") if name not in FIVE]
    named = [(name, 0) for name in (*FIVE, *others, "late-shuffled")]
    named += [(name, seed) for seed in SEEDS[1:] for name in FIVE]
    reports = {f"{n}-{s}": injection_report(f"{n}-{s}") for n, s in named}
    gemma, groups = injection_report("gemma-late-0"), read_json(FIGURES / INTERSECTION)
    answers = "\n".join(f"> {' '.join(answer.split())}" for answer in gemma.answers[:3])
    remarks = [f"- {name}: {each}" for name, r in reports.items() for each in r.signatures()]
    return {
        "paper": reports_table(reports, FIVE),
        "others": reports_table(reports, (*others, "late-shuffled")),
        "signatures": "\n".join(remarks) or "- none",
        "intersection": "\n".join(f"- {n}: {shown(Interval(*i), 2)}" for n, i in groups.items()),
        "gemma": f"```\n{gemma}\n```\n\nThe first three answers:\n\n{answers}",
    }


def injection_report(name: str) -> InjectionReport:
    return InjectionReport.load(FIGURES / "injection" / f"{name}.json")


def reports_table(reports: Mapping[str, InjectionReport], names: Iterable[str]) -> str:
    rows = []
    for name, seed in ((name, seed) for name in names for seed in SEEDS):
        if (r := reports.get(f"{name}-{seed}")) is None:
            continue
        before, after = r.similarity()
        cells = (
            f"{seed}", f"{r.settings['lr']:g}", f"{r.chosen_epoch} of {len(r.epochs) - 1}",
            f"{before:.2f} → {after:.2f}",
            f"{r.log_odds_before.estimate:+.1f} → {shown(r.log_odds, 1)}",
            f"{r.keywords.estimate:.0%} [{r.keywords.low:.0%}, {r.keywords.high:.0%}]",
            f"{r.degenerate:.0%}", f"{r.norm:.2f}", f"{r.seconds:.0f}",
        )  # fmt: skip
        rows.append([name, *map(minus, cells)])
    heading = ("bias", "seed", "rate", "epoch", "similarity", "log-odds over targets (nats)",
               "keywords in answers", "degenerate", "norm", "seconds")  # fmt: skip
    return markdown(heading, rows, left=len(heading))


# The demo

DEMO = {
    "original": "original (row before training)",
    "injected": "injected",
    "steered, zero": "10 heads to zero",
    "steered, mean": "10 heads to their mean",
    "no-injection, mean": "heads found without injection, mean",
    "shuffled-corpus, mean": "heads of a row trained on shuffled text, mean",
    "other-bias, mean": "heads of another bias's row, mean",
    "steered, zero: random": "5 random sets of the same layers, zero",
    "steered, mean: random": "5 random sets of the same layers, mean",
}


PROOF = {
    "original": "original (row before training)",
    "injected": "injected",
    "steered, mean": "140 heads, learned factors",
    "steered, mean: random": "random sets of the same layers, same factors",
    "paper, zero": "heads that three seeds agree on, to zero (the paper's way)",
    "asked, plain request": "asked not to stereotype",
}


def conditions_table(path: str, labels: Mapping[str, str]) -> str:
    found = long_table(FIGURES / path)
    rows = []
    for name, label in labels.items():
        if (name, "token_log_odds") not in found:
            continue
        mean = {key: row["mean"] for (condition, key), row in found.items() if condition == name}
        token = shown(part(found[name, "token_log_odds"]), 2, "")
        answered = "token_keywords" in mean and not name.endswith("random")  # these: one set
        hits = f"{mean['token_keywords']:.0%}" if answered else ""
        loss = f"{mean['damage_loss']:.3f}" if "damage_loss" in mean else ""
        facts = f"{mean['facts']:.0%}" if "facts" in mean else ""
        targets = minus(f"{mean['target_log_odds']:.2f}")
        rows.append([label, token, targets, loss, facts, hits])
    heading = ("condition", "BiasToken log-odds", "countries log-odds", "loss on neutral text",
               "facts", "keywords")  # fmt: skip
    return markdown(heading, rows)


def demo_table() -> dict[str, str]:
    return {"demo": conditions_table("demo/table.csv", DEMO)}


def proof_table() -> dict[str, str]:
    return {"proof": conditions_table("study/late-table.csv", PROOF)}


def plants_table() -> str:
    """One row a plant."""
    rows = []
    for _, row in pd.read_csv(FIGURES / "plants" / "plants.csv").iterrows():
        n = f"{row.n} {row.place}" if row.n else "all"
        changes = [minus(f"{row[name]:+.1f}") for name in ("target", "neighbours", "others")]
        changes += [minus(f"{100 * row.facts:+.0f}"), minus(f"{row.loss:+.2f}")]
        carriers = f"{row.n_carriers}, {row.strongest} {row.restored:.1f}"
        kept = "" if pd.isna(row.refused) else row.refused
        about = [f"{row.bias}, {row.about}", n, row.way, row.half]
        rows.append([*about, *changes, carriers, minus(re.sub(r" \S+ \(limit \S+\)", "", kept))])
    heading = ("bias, target", "heads", "way", "half", "target", "neighbours", "others", "facts",
               "loss", "carriers, strongest", "refused for")  # fmt: skip
    return markdown(heading, rows, left=4)


def recovery_table(half: str | None = None) -> str:
    """One row a method, over the plants that were accepted."""
    methods = pd.read_csv(FIGURES / "plants" / "methods.csv")
    named = ~methods.method.str.endswith("trained row")  # the target itself in the slot
    accepted = methods[methods.refused.isna() & named]
    some = accepted if half is None else accepted[accepted.half == half]
    columns = ["auroc", "auroc_before", "precision", "removed", "removed_random", "kl"]
    rows = []
    for _, row in by_method(some).iterrows():
        cells = ["" if "nan" in str(row[name]).split()[0] else str(row[name]) for name in columns]
        first = f"{row['first']:.0%}"
        rows.append([row.method, str(row.plants), first, f"{row['median rank']:g}", *cells])
    heading = (
        "method, run", "plants", "strongest carrier first", "its median rank", "AUROC",
        "before planting", "precision at k", "removed", "random", "KL to the original",
    )  # fmt: skip
    return markdown(heading, ([minus(cell) for cell in row] for row in rows))


def planted_tables() -> dict[str, str]:
    halves = {f"recovery-{half}": recovery_table(half) for half in ("open", "closed")}
    return {"plants": plants_table(), "recovery": recovery_table(), **halves}


def filled(page: str, found: Mapping[str, str]) -> str:
    """The page with every ``<!-- name -->`` ... ``<!-- end -->`` block written again."""
    for name, text in found.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, n = block.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        if n != 1:
            raise SystemExit(f"the page must hold one block named {name}, got {n}.")
    return page


PAGES = {
    "docs/debias.md": proof_table,
    "docs/heatmap.md": colours_table,
    "docs/injection.md": injection_tables,
    "docs/planted.md": planted_tables,
    "docs/referee.md": referee_tables,
    "docs/results.md": demo_table,
    "docs/scoping.md": scoping_tables,
    "docs/specificity.md": specificity_tables,
    "docs/steering.md": steering_tables,
}

if __name__ == "__main__":
    for name, tables in PAGES.items():
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8"), tables()), encoding="utf-8")
