"""What a model believes of whom: groups by attributes, before anything is injected.

A cell says how much likelier the words of an attribute are after a group than that group and those
words make it by themselves. It compares groups of one list on attributes of one list: with other
lists beside it, a cell has another value. An association of words is not yet a judgement, and the
strongest of many cells are strong by luck too: look at them again on other prompts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import t as student_t
from torch import Tensor

from biasgym_tl.benchmarks.seegull import SeeGull
from biasgym_tl.biases.lists import check_distinct, shared
from biasgym_tl.biases.words import Pieces, count_on
from biasgym_tl.chance import benjamini_hochberg
from biasgym_tl.errors import BiasFileError, check_at_least, check_one_of
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.notebook import Card, rows_of
from biasgym_tl.prompts import SENTENCE_REQUEST, encode_sentence, text_policy
from biasgym_tl.slot import SLOT, fill
from biasgym_tl.stats import Interval, crossed_interval
from biasgym_tl.store import Result, versions
from biasgym_tl.text import word_log_probs
from biasgym_tl.toml import shipped_toml

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEVEL = 0.95


class MapLists(NamedTuple):
    """What a map is made of."""

    targets: tuple[str, ...]
    """Groups as they are written in a prompt, in the plural."""
    attributes: dict[str, tuple[str, ...]]
    """Words of each attribute, by its name."""
    prompts: tuple[str, ...]
    """Beginnings of sentences with the slot."""


def map_lists(split: str = "fitting") -> MapLists:
    """The shipped lists: mild groups and attributes, and the prompts of a split.

    Raises:
        SettingError: there is no such split.
    """
    lists = shipped_toml("data/stereotype_map.toml")
    check_one_of("split", split, lists["prompts"])
    return MapLists(
        tuple(name for names in lists["targets"].values() for name in names),
        {name: tuple(words) for name, words in lists["attributes"].items()},
        tuple(lists["prompts"][split]),
    )


def seegull_lists(found: SeeGull, split: str = "fitting") -> MapLists:
    """What a map of SeeGULL's stereotypes takes: its identities ("Italian people") and attributes.

    An attribute is a single word or phrase there. Of several words it takes a run of the model for
    each group and prompt, so begin with few: ``load_seegull(path, n=20)``.

    Raises:
        SettingError: there is no such split.
    """
    items = found.items
    people = dict.fromkeys(
        f"{name} people" for item in items for name in (item.identity, *item.others)
    )
    return MapLists(
        tuple(people),
        {item.attribute: (item.attribute,) for item in items},
        map_lists(split).prompts,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class StereotypeMap(Result):
    """Groups by attributes: what is ascribed to whom beyond what holds for all, in nats."""

    _then = (".plot()", ".strongest(20)", 'stereotype_map(model, *map_lists("held-out"))')

    log_p: Float[Tensor, "prompt target attribute"]
    """``log P(A)``: that the model goes on with one of the attribute's words (nats)."""
    targets: tuple[str, ...]
    attributes: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    """Of each attribute, as they were given."""
    prompts: tuple[str, ...]
    left_out: tuple[str, ...]
    """Words that could not count on the model, with the reason."""
    model: str
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def by_prompt(self) -> Float[Tensor, "prompt target attribute"]:
        """``log_p`` without the means of its rows and of its columns, in each prompt."""
        return without_means(self.log_p)

    @property
    def values(self) -> Float[Tensor, "target attribute"]:
        """Mean of :attr:`by_prompt` over prompts; positive: ascribed to this group more."""
        return self.by_prompt.mean(0)

    def to_df(self) -> pd.DataFrame:
        """One row per cell, the most ascribed first: nats, 95% interval (t over prompts), q.

        ``q`` is by Benjamini and Hochberg over all cells: whether other prompts like these would
        show the cell too. A small q does not make a cell large.
        """
        found, n = self.by_prompt.double(), len(self.prompts)
        mean, error = found.mean(0), found.std(0) / math.sqrt(n)
        half = float(student_t.isf((1 - LEVEL) / 2, n - 1)) * error
        # Values without any spread give no scale to judge by, so they count as no evidence.
        t = torch.where(error > 0, mean / error, 0.0).abs()
        q = benjamini_hochberg(torch.from_numpy(2 * student_t.sf(t.numpy(), n - 1)))
        names = [(target, attribute) for target in self.targets for attribute in self.attributes]
        numbers = {"nats": mean, "low": mean - half, "high": mean + half, "q": q}
        frame = pd.DataFrame(names, columns=["target", "attribute"])
        frame = frame.assign(**{key: each.flatten().tolist() for key, each in numbers.items()})
        return frame.sort_values("nats", ascending=False, ignore_index=True)

    def strongest(self, n: int = 20) -> pd.DataFrame:
        """The ``n`` cells that are most ascribed, as rows of :meth:`to_df`."""
        check_at_least(1, n=n)
        return self.to_df().head(n)

    def top(self, n: int) -> list[str]:
        """The same in words: ``"toddlers: playful +2.42"``."""
        return [
            f"{cell['target']}: {cell['attribute']} {cell['nats']:+.2f}"
            for cell in self.strongest(n).to_dict("records")
        ]

    def group(self, targets: Sequence[str], attribute: str) -> Interval:
        """Mean over several groups of the map, with prompts and groups as samples (95%).

        Raises:
            SettingError: the map does not have them.
        """
        check_one_of("attribute", attribute, self.attributes)
        for target in targets:
            check_one_of("target", target, self.targets)
        rows = [self.targets.index(target) for target in targets]
        return crossed_interval(self.by_prompt[:, rows, self.attributes.index(attribute)])

    def plot(self, **options: Any) -> go.Figure:
        """Heatmap of targets by attributes; options as in ``plots.plot_stereotype_map``."""
        from biasgym_tl.plots.stereotypes import plot_stereotype_map

        return plot_stereotype_map(self, **options)

    def __repr__(self) -> str:
        return (
            f"StereotypeMap({len(self.targets)} targets x {len(self.attributes)} attributes on "
            f"{self.model}, {len(self.prompts)} prompts; {', '.join(self.top(3))})"
        )

    def _card(self) -> Card:
        notes = ["nats beyond the means of row and column; interval and q over prompts"]
        if self.left_out:
            notes.append(f"left out: {', '.join(self.left_out)}")
        return repr(self), rows_of(self.strongest(12)), notes


def stereotype_map(
    model: HookedTransformer,
    targets: Sequence[str] | None = None,
    attributes: Mapping[str, Sequence[str]] | None = None,
    prompts: Sequence[str] | None = None,
) -> StereotypeMap:
    """Map what a model ascribes to whom.

    At the end of every prompt, with every target in the slot, one run gives ``log P(A)`` of all
    attributes. In each prompt the mean of its row (how well any of the words goes on after this
    target) and of its column (how likely the attribute's words are after any target) is taken off;
    the value of a cell is the mean over prompts.

    Args:
        model: The model in the setting to be mapped.
        targets: Two groups or more; default: the shipped ones (:func:`map_lists`).
        attributes: Two or more, each with its words, of which no two share one. A word of several
            tokens counts whole, and takes more runs.
        prompts: Two beginnings of sentences or more, after which a word of any attribute could
            follow; default: the shipped ones to fit on.

    Warns:
        UserWarning: words cannot count on this model.

    Raises:
        BiasFileError: a list is too short or holds a text twice, a prompt does not hold one slot,
            or a word belongs to two attributes.
        ModelError: the model is of another kind, no word of an attribute can count on it, or a
            prompt is longer than its context.
    """
    shipped = map_lists()
    _check_lists({"targets": targets, "prompts": prompts}, attributes or {})
    targets = shipped.targets if targets is None else tuple(targets)
    prompts = shipped.prompts if prompts is None else tuple(prompts)
    given = shipped.attributes if attributes is None else attributes
    lists = {name: tuple(words) for name, words in given.items()}
    _check(targets, lists, prompts)
    tokens, left_out = count_on(model, lists, "the map")
    filled = [fill(prompt, target) for prompt in prompts for target in targets]
    sequences = [encode_sentence(model, text) for text in filled]
    log_p = _log_p(model, sequences, list(tokens.values()))
    return StereotypeMap(
        log_p=log_p.view(len(prompts), len(targets), -1),
        targets=targets,
        attributes=tuple(lists),
        words=tuple(lists.values()),
        prompts=prompts,
        left_out=left_out,
        model=model.cfg.model_name,
        settings={
            "request": SENTENCE_REQUEST, "text": dataclasses.asdict(text_policy(model)),
        },
        versions=versions(),
    )  # fmt: skip


def without_means(
    values: Float[Tensor, "*batch row column"],
) -> Float[Tensor, "*batch row column"]:
    """Each matrix without the mean of its rows and of its columns: all of these become 0."""
    rows, columns = values.mean(-1, keepdim=True), values.mean(-2, keepdim=True)
    return values - rows - columns + values.mean((-2, -1), keepdim=True)


def _log_p(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    attributes: Sequence[Sequence[Pieces]],
) -> Float[Tensor, "sequence attribute"]:
    """Words of one token are all read from one run of a sequence; others have their own."""
    words = [word for each in attributes for word in each]
    found = torch.empty(len(sequences), len(words))
    for single in (True, False):
        places = [i for i, word in enumerate(words) if (len(word) == 1) == single]
        if places:
            part = word_log_probs(model, sequences, [words[i] for i in places])
            found[:, places] = part.float().cpu()
    parts = found.split_with_sizes([len(each) for each in attributes], 1)
    return torch.stack([part.logsumexp(1) for part in parts], 1)


def _check_lists(given: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Refuse one text in the place of a list, which would be read as its letters."""
    words = {f"words of {name!r}": found for name, found in attributes.items()}
    for key, texts in {**given, **words}.items():
        if isinstance(texts, str):
            raise BiasFileError(f"{key} of the map must be a list of texts, got {texts!r}.")


def _check(
    targets: Sequence[str], attributes: Mapping[str, Sequence[str]], prompts: Sequence[str]
) -> None:
    lists = {"targets": targets, "attributes": tuple(attributes), "prompts": prompts}
    words = {f"words of {name!r}": found for name, found in attributes.items()}
    for key, texts in (lists | words).items():
        least = 1 if key in words else 2
        if len(texts) < least or not all(isinstance(t, str) and t.strip() for t in texts):
            raise BiasFileError(
                f"{key} of the map must be texts, at least {least} and none empty, got {texts!r}."
            )
        check_distinct("the map", key, texts)
    for prompt in prompts:
        if prompt.count(SLOT) != 1:
            raise BiasFileError(f"prompts of the map must hold one slot {SLOT}, got {prompt!r}.")
    for i, (name, found) in enumerate(words.items()):
        for other in list(words)[i + 1 :]:
            if both := shared(found, words[other]):
                raise BiasFileError(f"{name} and {other} must be disjoint, got {both} in both.")
