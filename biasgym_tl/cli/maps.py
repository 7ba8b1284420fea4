"""The command that scores heads: with a row, with targets in its place, on prompts of one's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biasgym_tl.biases.bias import load_bias
from biasgym_tl.cli.app import (
    check_folder,
    check_no_injection,
    command,
    find_model,
    load,
    say,
    say_json,
)
from biasgym_tl.cli.options import (
    AsJson,
    ContrastKind,
    Device,
    DeviceMap,
    Dtype,
    Fresh,
    Methods,
    ModelName,
    NeutralSide,
    NoInjection,
)
from biasgym_tl.errors import SettingError, check_within

if TYPE_CHECKING:
    from biasgym_tl.lens import HookedTransformer
    from biasgym_tl.scoping.compare import Comparison
    from biasgym_tl.scoping.scores import HeadScores
    from biasgym_tl.steps import Steps

    Score = Callable[[HookedTransformer, Steps, str], HeadScores]
    """Of a model, by a method; a finished map is read back."""

Pairs = Annotated[
    Path | None,
    typer.Option(
        help="Prompts of your own, without bias and row: a CSV file with the columns first, "
        "second (not for single prompts), and biased, neutral unless there are --answers."
    ),
]


def _two_answers(answers: tuple[str, str] | None) -> tuple[str, str] | None:
    """Refuse an option in the place of the second answer."""
    if answers and (option := next((a for a in answers if a.startswith("--")), None)):
        raise SettingError(
            f"--answers must be two, biased and neutral, got {answers[0]!r} and then {option}."
        )
    return answers


Answers = Annotated[
    tuple[str, str] | None,
    typer.Option(
        help="Of --pairs, biased and neutral, such as late early or late,slow early.",
        callback=_two_answers,
    ),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Put --pairs as plain text, without a request before.")
]
ContrastPrompts = Annotated[
    Path | None, typer.Option(help="Contrast prompts from 'biasgym write --contrasts'.")
]


@command()
def scope(
    out: Annotated[Path, typer.Option(help="Folder for scores and figures.")],
    model: ModelName = "smollm2-135m-instruct",
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    bias: Annotated[
        str | None, typer.Option(help="Shipped bias, or a .toml file; default: late.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the shipped row, and of who stands in the slot.")
    ] = None,
    token: Annotated[
        Path | None, typer.Option(help="Row from 'biasgym inject'; default: the shipped one.")
    ] = None,
    no_injection: NoInjection = False,
    pairs: Pairs = None,
    answers: Answers = None,
    plain: Plain = False,
    method: Methods = None,
    contrast: ContrastKind = None,
    neutral: NeutralSide = None,
    prompts: ContrastPrompts = None,
    k: Annotated[int, typer.Option(help="Heads to name and frame.")] = 10,
    png: Annotated[bool, typer.Option("--png", help="Figures as PNG too.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the heatmap in a browser.")] = False,
    fresh: Fresh = False,
    json: AsJson = False,
) -> None:
    """Score every head, by one or several methods, draw the heatmaps, and compare them."""
    methods = list(dict.fromkeys(method or ["direct"]))
    of_bias: dict[str, Any] = {
        "bias": bias, "seed": seed, "token": token, "no_injection": no_injection or None,
        "neutral": neutral, "prompts": prompts,
    }  # fmt: skip
    if pairs:
        _refuse(of_bias, "without")
    else:
        _refuse({"answers": answers, "plain": plain or None}, "with")
        load_bias(bias or "late")
    sizes = find_model(model)
    check_within("k", k, 1, sizes.n_layers * sizes.n_heads if sizes else k)
    check_folder(out)
    if pairs:
        score = _own(pairs, answers, methods, contrast, plain)
    else:
        score = _of_bias(model, methods, contrast or "biased", **of_bias)
    loaded = load(model, dtype, device, device_map)
    found = _scored(score, loaded, methods, out, k, fresh=fresh, err=json)
    compared = _compared(found, k)
    if len(found) > 1:
        say(compared or "Methods are compared on more prompts than these.", err=json)
    _write_figures(found, k, out, png=png, agreement=compared is not None)
    first = (out / f"{methods[0]}.html").resolve()
    say(f"Heatmap: {first}", err=json)
    if json:
        say_json({"heads": _chosen(found, k), "agreement": compared and compared.to_df()})
    if show:
        _open(first)


def _scored(
    score: Score,
    model: HookedTransformer,
    methods: list[str],
    out: Path,
    k: int,
    *,
    fresh: bool,
    err: bool,
) -> dict[str, HeadScores]:
    """The maps by method, each written down as soon as it is there."""
    from biasgym_tl.manifest import write_results
    from biasgym_tl.steps import Steps

    steps = Steps.of(model, fresh=fresh)
    found: dict[str, HeadScores] = {}
    for name in methods:
        scores = found[name] = score(model, steps, name)
        write_results(out, partial(_write_maps, found, k))  # kept, whatever becomes of the next
        say(f"{scores!r}\n  top {k}: {', '.join(map(str, scores.top(k)))}", err=err)
        for prompt in scores.left_out:
            say(f"  left out, both answers begin alike: {prompt}", err=err)
    return found


def _compared(found: dict[str, HeadScores], k: int) -> Comparison | None:
    """How far methods agree; None of one, or on too few prompts."""
    from biasgym_tl.scoping.compare import FEWEST_PROMPTS, compare

    scores = list(found.values())
    enough = len(scores) > 1 and len(scores[0].prompts) >= FEWEST_PROMPTS
    return compare(scores, k=k) if enough else None


def _chosen(found: dict[str, HeadScores], k: int) -> dict[str, Any]:
    from biasgym_tl.steering.selection import select_heads

    return {method: select_heads(scores, k).record() for method, scores in found.items()}


def _refuse(options: dict[str, Any], how: str) -> None:
    """Refuse those that were given."""
    if given := [f"--{n.replace('_', '-')}" for n, value in options.items() if value is not None]:
        raise SettingError(f"{', '.join(given)} must be given {how} --pairs, and not otherwise.")


def _own(
    path: Path,
    answers: tuple[str, str] | None,
    methods: list[str],
    contrast: str | None,
    plain: bool,
) -> Score:
    """Scores a model on the prompts of a file, which are found to be right first."""
    from biasgym_tl.scoping.given_prompts import read_prompts

    own = read_prompts(path, *(side.split(",") for side in answers or ()))  # before what is slow
    from biasgym_tl.prompts import SENTENCE_REQUEST
    from biasgym_tl.scoping.own_prompts import attribute_prompts, scope_of
    from biasgym_tl.scoping.scores import HeadScores

    for name in methods:
        scope_of(own, contrast, method=name)
    request = None if plain else SENTENCE_REQUEST

    def score(model: HookedTransformer, steps: Steps, method: str) -> HeadScores:
        make = partial(
            attribute_prompts, model, *own, method=method, contrast=contrast, request=request,
            progress=True,
        )  # fmt: skip
        uses = [*own, method, contrast, request]
        return steps.kept(f"map {method}, own prompts", uses, HeadScores, make, attribute_prompts)

    return score


def _of_bias(
    model_name: str,
    methods: list[str],
    contrast: str,
    bias: str | None,
    seed: int | None,
    token: Path | None,
    no_injection: bool | None,
    neutral: str | None,
    prompts: Path | None,
) -> Score:
    """Scores a model on a bias, with all that this needs found first."""
    from biasgym_tl.biases.contrasts import read_contrasts
    from biasgym_tl.injection.shipped import list_tokens, load_token
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.protocol.stages import kept_map
    from biasgym_tl.scoping.scope import BiasScope

    settings: dict[str, Any] = {"neutral": neutral or "random", "seed": seed or 0}
    settings["contrast"] = contrast
    scopes = {name: BiasScope(**settings, method=name) for name in methods}  # type: ignore[arg-type]
    loaded, seed = load_bias(bias or "late"), seed or 0
    check_no_injection(bool(no_injection), token)
    row = None if token is None else BiasToken.load(token)
    if not no_injection and row is None:
        if f"{loaded.name}-{seed}" not in list_tokens():
            raise SettingError(
                f"--token must name a row for {loaded.name!r}, of which none ships for seed "
                f"{seed}. Train one with 'biasgym inject', or map the targets with --no-injection."
            )
        row = load_token(loaded.name, seed=seed)
    find_model(model_name, bias=loaded, rows=[row] if row else [])
    contrasts = read_contrasts(prompts) if prompts else ()
    if not contrasts:
        loaded.needs("scoping")
    for scope in scopes.values():
        scope.check_slot(row)

    def score(model: HookedTransformer, steps: Steps, method: str) -> HeadScores:
        label = f"map {method}, {loaded.name}, seed {seed}"
        return kept_map(
            steps, label, scopes[method], model, loaded, row, contrasts=contrasts, progress=True
        )

    return score


def _write_maps(found: dict[str, HeadScores], k: int, folder: Path) -> dict[str, str]:
    """The name of each map's file."""
    from biasgym_tl.steering.selection import select_heads

    maps = {method: scores.save(folder / method).name for method, scores in found.items()}
    for method, scores in found.items():
        select_heads(scores, k).save(folder / f"{method}-heads.json")
    return maps


def _write_figures(
    found: dict[str, HeadScores], k: int, out: Path, *, png: bool, agreement: bool
) -> None:
    """A heatmap of each map, and how far they agree."""
    from biasgym_tl.figures import draw, recipe
    from biasgym_tl.manifest import write_results

    def write(folder: Path) -> str | None:
        maps = _write_maps(found, k, folder)
        figures = {method: recipe("heads", [name], mark_top=k) for method, name in maps.items()}
        if agreement:
            figures["agreement"] = recipe("agreement", maps)
        return draw(folder, figures, png=png)

    if remark := write_results(out, write):
        say(remark, err=True)


def _open(page: Path) -> None:
    """Show a page, where there is a screen."""
    if sys.platform in ("darwin", "win32") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        typer.launch(str(page))
    else:
        say("No screen: open it in a browser, or in Jupyter scores.plot().show().", err=True)
