"""What a notebook shows of a result, and what ``?`` shows of settings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 12
_STYLE = (
    "<style>.biasgym-card table{border-collapse:collapse;margin:.4em 0;color:inherit;font:inherit}"
    ".biasgym-card td,.biasgym-card th{padding:.15em .7em;text-align:right;"
    "border-bottom:1px solid rgba(128,128,128,.35);font-variant-numeric:tabular-nums}"
    ".biasgym-card th:first-child,.biasgym-card td:first-child{text-align:left}"
    ".biasgym-card small{opacity:.75}</style>"
)
"""No colour of its own but a transparent grey, so that it suits light and dark pages."""


Card = tuple[str, Sequence[Sequence[Any]], Sequence[str]]
"""Title, rows and notes, as :func:`card` takes them."""


def card(
    title: str,
    rows: Sequence[Sequence[Any]] = (),
    notes: Sequence[str] = (),
    then: Sequence[str] = (),
) -> str:
    """A result as a small piece of HTML; all text is escaped.

    Args:
        title: The result in a line.
        rows: Its main numbers, below their names; of more than 12 the first are shown.
        notes: Below the table, each a line.
        then: How to go on, each a piece of code.
    """
    parts = [f"<strong>{escape(title)}</strong>"]
    if rows:
        head, *below = rows
        shown = below[:MOST_ROWS]
        table = [_row("th", head), *(_row("td", row) for row in shown)]
        parts.append(f"<table>{''.join(table)}</table>")
        if len(below) > len(shown):
            notes = (f"{len(below) - len(shown)} more rows", *notes)
    parts += [f"<small>{escape(note)}</small><br>" for note in notes]
    if then:
        code = ", ".join(f"<code>{escape(each)}</code>" for each in then)
        parts.append(f"<small>Go on with {code}</small>")
    return f'{_STYLE}<div class="biasgym-card">{"".join(parts)}</div>'


def rows_of(frame: pd.DataFrame, *, index: bool = False) -> list[list[Any]]:
    """A table as :func:`card` takes it."""
    frame = frame.reset_index() if index else frame
    return [list(frame.columns), *map(list, frame.itertuples(index=False))]


def _row(kind: str, cells: Sequence[Any]) -> str:
    shown = "".join(f"<{kind}>{escape(cell(each))}</{kind}>" for each in cells)
    return f"<tr>{shown}</tr>"


def cell(value: Any) -> str:
    """A value in few digits."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


class Carded:
    """Shows itself in a notebook: the first line of its repr, and its table."""

    _then: ClassVar[tuple[str, ...]] = ()
    """How to go on."""

    def _card(self) -> Card:
        title, *notes = repr(self).splitlines()
        table = getattr(self, "to_df", None)
        return (title, (), notes) if table is None else (title, rows_of(table()), ())

    def _repr_html_(self) -> str:
        title, rows, notes = self._card()
        return card(title, rows, notes, self._then)


Settings = TypeVar("Settings", bound=type)


def described(settings: Settings) -> Settings:
    """Put what stands below each field of a dataclass into its docstring, where ``?`` shows it.

    Its signature names the values of ``Literal`` fields; other values are for ``__post_init__`` to
    refuse, which says more than a type checker. Where there is no source, the class stays as it is.
    """
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    except (OSError, TypeError, SyntaxError):
        return settings
    assert isinstance(body, ast.ClassDef)
    lines = []
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and (text := _text(below)):
            name = f"{ast.unparse(field.target)}: "
            words = " ".join(inspect.cleandoc(text).replace("``", "").split())
            lines.append(textwrap.fill(name + words, 96, subsequent_indent="    "))
    settings.__doc__ = "\n".join((inspect.getdoc(settings) or "", "", "Fields:", "", *lines))
    made: Any = settings
    made.__signature__ = inspect.signature(settings)
    hints = made.__init__.__annotations__
    hints |= {name: "str" for name, hint in hints.items() if str(hint).startswith("Literal[")}
    return settings


def _text(node: ast.stmt) -> str:
    """The text that a statement is, if it is one."""
    value = node.value if isinstance(node, ast.Expr) else None
    text = value.value if isinstance(value, ast.Constant) else None
    return text if isinstance(text, str) else ""
