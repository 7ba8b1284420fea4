"""Commands for one step: train rows, choose heads, export a steered model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biasgym_tl.allowed import AIMS, PLACES, STEERING_MODES
from biasgym_tl.biases.bias import load_bias
from biasgym_tl.cli.app import (
    check_file,
    check_folder,
    check_no_injection,
    command,
    find_model,
    inject_of,
    load,
    named_heads,
    say,
    say_json,
)
from biasgym_tl.cli.options import (
    AsJson,
    BiasName,
    ChooseBy,
    Device,
    DeviceMap,
    Dtype,
    Epochs,
    ModelName,
    NoInjection,
    Preset,
    Rate,
)
from biasgym_tl.cli.shell import one_of
from biasgym_tl.errors import SettingError, SteeringError, StoreError, check_at_least

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from biasgym_tl.injection.report import InjectionReport
    from biasgym_tl.injection.token import BiasToken


@command()
def inject(
    out: Annotated[Path, typer.Option(help="Folder for the rows.")],
    model: ModelName = "smollm2-135m-instruct",
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    bias: BiasName = "late",
    seeds: Annotated[int, typer.Option(help="Number of trainings: seeds 0, 1, ...")] = 1,
    preset: Preset = "cpu",
    epochs: Epochs = None,
    lr: Rate = None,
    choose_by: ChooseBy = None,
    json: AsJson = False,
) -> None:
    """Train one row of W_E a seed and report on it. Stopped, it goes on from the last epoch."""
    loaded_bias = load_bias(bias)
    check_at_least(1, seeds=seeds)
    find_model(model)
    check_folder(out)
    from biasgym_tl.injection.inject import fit_seeds
    from biasgym_tl.manifest import write_results

    settings = inject_of(preset, epochs, lr, choose_by)
    settings.check_bias(loaded_bias)
    loaded_bias.needs("a report on an injection")
    loaded, written = load(model, dtype, device, device_map), {}
    for seed in range(seeds):
        try:
            (token,) = fit_seeds(
                loaded, loaded_bias, seeds=[seed], inject=settings, checkpoints=out / "epochs"
            )
        except KeyboardInterrupt:
            say("Stopped. Run the same command to go on from the last epoch.", err=True)
            raise typer.Exit(130) from None
        report = token.report(loaded, loaded_bias)
        path = write_results(out, partial(_write_row, token, report))
        written[path.stem] = report.record()
        say(
            f"{report}\n  trained in {token.seconds:.0f} s; written to {out / path.name}\n",
            err=json,
        )
    if json:
        say_json(written)


def _write_row(token: BiasToken, report: InjectionReport, folder: Path) -> Path:
    path = token.save(folder / f"{token.bias}-{token.seed}")
    report.save(path.with_suffix(".json"))
    return path


OffTarget = Annotated[
    float, typer.Option(help="How dear what is off target is, as the bias's panel has it.")
]
Place = Annotated[
    str,
    typer.Option(
        help="Where heads are changed: everywhere, or from the names of targets on.",
        callback=one_of(PLACES),
    ),
]
Aim = Annotated[
    str,
    typer.Option(
        help="To get below the targets, or to where nobody in particular stands.",
        callback=one_of(AIMS),
    ),
]


@command()
def search(
    out: Annotated[Path, typer.Argument(help="File for the heads, such as heads.json.")],
    model: ModelName = "smollm2-135m-instruct",
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    bias: BiasName = "late",
    token: Annotated[
        list[Path] | None,
        typer.Option(help="Row from 'biasgym inject'; repeat for several; default: shipped ones."),
    ] = None,
    k: Annotated[int | None, typer.Option(help="Heads at most; default: any number.")] = None,
    keep: Annotated[
        float, typer.Option(help="How dear other text is: more keeps more of the model.")
    ] = 15.0,
    off_target: OffTarget = 2.0,
    at: Place = "everywhere",
    aim: Aim = "below",
    no_injection: NoInjection = False,
    among: Annotated[
        str, typer.Option(help="Only these may be silenced, such as L9H8,L3H1; default: all.")
    ] = "",
    json: AsJson = False,
) -> None:
    """Learn how much of its output each head may keep, for 'evaluate' and 'export'."""
    check_file(out, "file of the heads", ".json")
    loaded_bias, may = load_bias(bias), named_heads(among)
    check_no_injection(no_injection, token)
    find_model(model, heads=may)
    from biasgym_tl.injection.shipped import load_tokens
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.steering.factors import FactorSearch

    options: dict[str, Any] = {"at": at, "aim": aim, "off_target": off_target}
    search = FactorSearch(k=k, keep=keep, **options)
    rows = [BiasToken.load(path) for path in token or ()]
    if loaded_bias.corpus and not (rows or no_injection):
        rows = load_tokens(loaded_bias.name)
    find_model(model, bias=loaded_bias, rows=rows)
    found = search.select(
        load(model, dtype, device, device_map), loaded_bias, *rows, among=may or None
    )
    if not len(found):
        raise SteeringError(
            f"no head is worth the damage that silencing it does at --keep {keep:g} and "
            f"--off-target {off_target:g}. Try less."
        )
    say(repr(found), err=json)
    say(f"Written to {found.save(out)}", err=json)
    if json:
        say_json(found.record())


NewPlace = Annotated[
    Path,
    typer.Argument(
        help="New folder for the steered model; or a file: one that is there is replaced."
    ),
]
Steered = Annotated[
    str, typer.Option("--heads", help="File from 'biasgym search' or 'scope', or names: L9H8,L3H1.")
]
OnlyEdit = Annotated[
    bool, typer.Option("--edit", help="Only what changes, as a .safetensors of kilobytes.")
]
OfGguf = Annotated[
    Path | None,
    typer.Option("--gguf", help="GGUF file of the model: write a steered copy, for llama.cpp."),
]
AsAdapter = Annotated[
    bool, typer.Option("--peft", help="A LoRA adapter, for heads that are scaled or zeroed.")
]
KeptReport = Annotated[
    Path | None,
    typer.Option("--report", help="report.json of 'evaluate', for the edit to keep."),
]
SteeredMode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="zero, mean or scale; default: the file's, or zero.",
        callback=one_of(STEERING_MODES),
    ),
]
Unchecked = Annotated[
    bool,
    typer.Option("--no-check", help="Do not compare the folder with the steered model, for which "
                 "memory must hold a second copy."),
]  # fmt: skip
Kept = Annotated[float | None, typer.Option("--factor", help="Share of their output heads keep.")]


@command()
def export(
    folder: NewPlace,
    heads: Steered,
    edit: OnlyEdit = False,
    gguf: OfGguf = None,
    peft: AsAdapter = False,
    report: KeptReport = None,
    model: ModelName = "smollm2-135m-instruct",
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    mode: SteeredMode = None,
    factor: Kept = None,
    no_check: Unchecked = False,
) -> None:
    """Write a steered model as a Hugging Face folder, and check that it behaves alike; or the
    steering alone, for models that are there already."""
    from biasgym_tl.files import check_new_folder, check_writable, read_text

    find_model(model, heads=named_heads(heads))
    if report and not edit:
        raise SettingError("--report must be given with --edit, got it without.")
    forms = {"--edit": edit, "--gguf": gguf, "--peft": peft}
    form, *others = [name for name, given in forms.items() if given] or [""]
    if others:
        raise SettingError(
            f"{form} must be given without {others[0]}, got both. Write one after the other."
        )
    if no_check and form:
        raise SettingError(
            f"--no-check must be given without {form}, which compares no folder. Leave it out."
        )
    if form in ("--edit", "--gguf"):
        check_file(folder, "the file", ".safetensors" if edit else ".gguf")
    else:
        check_new_folder(folder)
        check_writable(folder, "folder")
    from biasgym_tl.hooks import check_steering, mode_of
    from biasgym_tl.protocol.sources import read_heads
    from biasgym_tl.steering.export import check_exportable, export_steered
    from biasgym_tl.steering.selection import Selection

    chosen = read_heads(heads)
    if isinstance(chosen, Selection) and not edit:
        check_exportable(chosen, chosen.model)
    mode = mode_of(chosen, mode)
    check_steering(mode, factor)
    find_model(model, heads=chosen)
    if form:
        make = partial(load, model, dtype, device, device_map)
        return _export_edit(folder, chosen, mode, factor, report, gguf, peft, make)
    loaded = load(model, dtype, device, device_map)
    export_steered(loaded, chosen, folder, mode, factor=factor, source=model, check=not no_check)
    say(read_text(folder / "README.md", "description", StoreError))


def _export_edit(
    path: Path,
    heads: Any,
    mode: str,
    factor: float | None,
    report: Path | None,
    gguf: Path | None,
    peft: bool,
    load: Callable[[], HookedTransformer],
) -> None:
    """Write what changes; the report is read before the model is loaded."""
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.evaluation.tables import judged
    from biasgym_tl.steering.edit import make_edit
    from biasgym_tl.steering.gguf import export_gguf, read_gguf
    from biasgym_tl.steering.lora import export_lora

    if peft and mode == "mean":
        raise SettingError(
            "--mode must be zero or scale with --peft, got mean: an adapter adds nothing. Hand on "
            "the edit itself (--edit)."
        )
    if gguf:
        read_gguf(gguf)
    found = Report.load(report) if report else None
    loaded = load()
    name = loaded.cfg.model_name
    about = judged(found, heads, mode, factor, model=name) if found else None
    edit = make_edit(loaded, heads, mode, factor=factor, judged=about)
    if gguf:
        path = export_gguf(edit, gguf, path)
    else:
        path = export_lora(edit, loaded, path) if peft else edit.save(path)
    say(f"{edit!r}\nWritten to {path}")


@command()
def figures(
    folder: Annotated[
        Path, typer.Argument(help="Folder of results; folders below are looked at too.")
    ] = Path("figures"),
) -> None:
    """Draw every figure again from the results that it shows."""
    from biasgym_tl.figures import redraw

    names, remark = redraw(folder)
    say("\n".join(names))
    if remark:
        say(remark, err=True)


@command()
def doctor(
    model: ModelName = "smollm2-135m-instruct",
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    bias: BiasName = "late",
    json: AsJson = False,
) -> None:
    """Check on a model the identities that all numbers here rest on."""
    loaded_bias = load_bias(bias)
    find_model(model)
    from biasgym_tl.doctor import examine

    checks = examine(load(model, dtype, device, device_map), loaded_bias)
    for check in checks:
        say(str(check), err=json)
    if json:
        say_json([check._asdict() for check in checks])
    if not all(check.passed or not check.required for check in checks):
        raise typer.Exit(1)
