"""The evaluation of models that are behind an address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from biasgym_tl.biases.bias import Bias, list_biases, load_bias
from biasgym_tl.cli.app import asking, check_folder, price_of, say, say_json
from biasgym_tl.cli.shell import Command
from biasgym_tl.errors import SettingError

USABLE = (
    "out", "bias", "others", "judge", "price_in", "price_out", "yes", "targets", "max_new_tokens",
    "fresh", "json", "api", "base_url", "key", "slot", "context",
)  # fmt: skip
"""Options of ``biasgym evaluate`` that a model behind an address leaves."""


class EvaluateCommand(Command):
    """``biasgym evaluate``: of heads of a model that is here, or of models behind an address."""

    def invoke(self, ctx: Any) -> Any:
        """Run it with options that go together."""
        given = {
            str(p.name): p.opts[0]
            for p in self.params
            if ctx.get_parameter_source(p.name).name == "COMMANDLINE"
        }
        if "api" not in given:
            if alone := [
                given[name] for name in ("base_url", "key", "slot", "context") if name in given
            ]:
                raise SettingError(f"{alone[0]} must be given with --api, got it without.")
            if "heads" not in given:
                raise SettingError("--heads must be given, or --api, got neither.")
        elif others := [option for name, option in given.items() if name not in USABLE]:
            raise SettingError(
                f"--api must be given without {', '.join(others)}: of a model behind an address "
                "only answers are known. Leave them out."
            )
        return super().invoke(ctx)


def evaluate_api(
    models: list[str],
    addresses: list[str],
    bias: Bias,
    out: Path,
    *,
    key: str,
    fresh: bool,
    others: bool,
    judge: str | None,
    price_in: float | None,
    price_out: float | None,
    yes: bool,
    json: bool,
    context: int,
    **asked: Any,
) -> None:
    """Ask one model or two, and write and show what they answer."""
    check_folder(out)
    from rich.console import Console

    from biasgym_tl.api import ChatModel
    from biasgym_tl.console import report_values, show_report
    from biasgym_tl.elicitation import in_context
    from biasgym_tl.evaluation.judging import judged
    from biasgym_tl.evaluation.served import AFTER, ORIGINAL, evaluate_served, served_measures
    from biasgym_tl.instructions import NOTHING
    from biasgym_tl.manifest import write_results
    from biasgym_tl.protocol.outputs import write_report
    from biasgym_tl.protocol.sources import usable_judge

    chats = [
        ChatModel(model=model, base_url=address, key=key, fresh=fresh)
        for model, address in _paired(models, addresses)
    ]
    alike = [load_bias(name) for name in (list_biases() if others else ())]
    alike = [b for b in alike if b.target_kind == bias.target_kind and b.name != bias.name]
    if context and not asked["slot"]:
        raise SettingError("--slot must say whom the context is about, got none. Give a name.")
    words = in_context(bias, asked["slot"], n=context) if context else NOTHING
    measures = served_measures(bias, others=alike, **asked)
    price = price_of(price_in, price_out)
    scores = usable_judge(judge, [bias, *alike], price=price, progress=True)
    try:
        report = evaluate_served(
            dict(zip((ORIGINAL, AFTER), chats, strict=False)), bias, measures, context=words,
            price=price, confirm=asking(yes),
        )  # fmt: skip
        if scores is not None:
            report = judged(report, scores, [bias, *alike], confirm=asking(yes))
    except KeyboardInterrupt:
        go_on = "the same command without --fresh" if fresh else "the same command"
        say(f"Stopped. Answers are kept: run {go_on} to go on.", err=True)
        raise typer.Exit(130) from None
    write_results(out, lambda folder: write_report(report, folder))
    show_report(report, Console(stderr=json))
    say(f"\nWritten to {out}/: report.html, table.csv, report.json", err=json)
    if json:
        say_json(report_values(report))


def _paired(models: list[str], addresses: list[str]) -> list[tuple[str, str | None]]:
    """Each model with its address; None: the one that the environment names."""
    if len(models) > 2:
        raise SettingError(f"--api must name one model or two, got {len(models)}.")
    if len(addresses) not in (0, 1, len(models)):
        raise SettingError(
            f"--base-url must be given once, or once for each of {len(models)} models, got "
            f"{len(addresses)}."
        )
    of: list[str | None] = [*addresses] or [None]
    return list(zip(models, of * len(models) if len(of) == 1 else of, strict=True))
