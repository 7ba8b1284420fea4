"""A choice of heads, written down before it is judged, with the data it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.gate import check_names
from biasgym_tl.heads import Head, as_heads
from biasgym_tl.hooks import check_mode
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.notebook import Card
from biasgym_tl.passages import load_passages
from biasgym_tl.scoping.agreement import seed_overlap
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.slot import fill
from biasgym_tl.spelling import plain
from biasgym_tl.store import Result, digest, versions


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Selection(Result):
    """Heads with all that led to them. Iterates over its heads, so ``steer`` takes it as it is."""

    _then = (
        "steer(model, heads)",
        "standard_conditions(token, heads)",
        ".save(path)",
    )
    _not_shown = (
        "The data that heads were chosen on cannot judge them, and what steering them does and "
        "costs is not in this file: evaluate it."
    )

    heads: tuple[Head, ...]
    """Strongest first."""
    method: str
    """How heads were scored."""
    token: str
    """Which row stood in the slot, or ``"no injection"``."""
    k: int
    """Heads that were asked for, or that each seed nominated."""
    mode: str
    """What they are to be replaced with: ``"zero"`` or ``"mean"``."""
    reference: str
    """Which text the mean is taken over; empty in mode ``"zero"``."""
    model: str
    bias: str
    data: dict[str, tuple[str, ...]]
    """Fingerprints of the prompts, targets and texts that the scores and means rest on, by kind.
    What the row was trained on is not among them."""
    settings: dict[str, Any]
    """Settings of the scores."""
    versions: dict[str, str]
    factors: tuple[float, ...] = ()
    """Share of its own output that each head keeps; empty: none."""
    after: tuple[str, ...] = ()
    """Names from which on the heads are changed; empty: everywhere."""

    def __post_init__(self) -> None:
        heads = as_heads(self.heads)
        check_names(self.after)
        if self.factors and len(self.factors) != len(heads):
            raise SteeringError(
                f"factors must be one for each of {len(heads)} different heads, got "
                f"{len(self.factors)} of them."
            )
        object.__setattr__(self, "heads", heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __repr__(self) -> str:
        where = f" after {len(self.after)} names" if self.after else ""
        heads = ", ".join(map(str, self))
        return f"Selection({self.method} on {self.token}, {self.mode}{where}: {heads})"

    def _card(self) -> Card:
        kept: dict[Head, float] = dict(zip(self.heads, self.factors, strict=False))
        rows = [(i, h, *([kept[h]] if kept else [])) for i, h in enumerate(self, start=1)]
        head = ("place", "head", *(["keeps"] if kept else []))
        title = f"{len(self)} heads to {self.mode}, by {self.method}"
        notes = [f"{self.bias} on {self.model}, {self.token}"]
        if self.after:
            notes.append(f"After the names of {len(self.after)} targets alone.")
        return title, [head, *rows], tuple(notes)

    @property
    def factor(self) -> dict[tuple[int, int], float] | None:
        """As ``steer(..., factor=)`` takes it."""
        if not self.factors:
            return None
        return dict(zip(self.heads, self.factors, strict=True))

    def check_model(self, name: str) -> None:
        """Refuse another model than the heads were chosen on.

        Raises:
            SteeringError: ``name`` is another model.
        """
        if name != self.model:
            raise SteeringError(
                f"model must be {self.model!r}, on which the heads were chosen, got {name!r}."
            )

    def check_held_out(self, **items: Iterable[str]) -> None:
        """Refuse to be judged on what the choice has seen.

        Args:
            items: By kind (``prompts``, ``targets``, ``texts``), what is to be evaluated on.
                Prompts count with each target in the slot, too.

        Raises:
            SteeringError: an item is among those; the message shows it.
        """
        check_held_out(self.data, **items)


def check_held_out(data: Mapping[str, Sequence[str]], **items: Iterable[str]) -> None:
    """Refuse to judge what was chosen on ``data`` (fingerprints by kind) by the same ``items``.

    Raises:
        SteeringError: an item is among those; the message shows it.
    """
    filled = [fill(p, t) for p in items.get("prompts", ()) for t in items.get("targets", ())]
    for kind, texts in (*items.items(), ("prompts", filled)):
        seen = set(data.get(kind, ()))
        both = [text for text in texts if _fingerprint(text) in seen]
        if both:
            raise SteeringError(
                f"{kind} of an evaluation must not be among those that the heads were chosen "
                f"on, got {both[:3]}{' and more' if len(both) > 3 else ''} in both. "
                "Evaluate on held-out ones."
            )


def select_heads(
    scores: HeadScores | Sequence[HeadScores],
    k: int = 10,
    *,
    mode: str = "mean",
    at_least: int | None = None,
) -> Selection:
    """Choose heads that push most toward the stereotype.

    Of one map: its ``k`` highest. Of several, one a seed: those that at least ``at_least`` of them
    have among their ``k`` highest (paper, section 3: all of 5 seeds, ``k`` = 30), highest mean
    first.

    Args:
        scores: From ``BiasScope``, which sees scoping prompts and fitting targets only.
        k: Number of heads, or of heads that each seed nominates.
        mode: What they are to be replaced with.
        at_least: Seeds that must nominate a head; default: all.

    Raises:
        SettingError: the model does not have ``k`` heads, maps are of different models, biases or
            methods, or the seeds agree on no head.
        SteeringError: there is no such mode.
    """
    check_mode(mode)
    maps = [scores] if isinstance(scores, HeadScores) else list(scores)
    if not maps:
        raise SettingError("scores must hold at least one map, got none. Attribute first.")
    first, settings = maps[0], dict(maps[0].settings)
    if len(maps) == 1:
        heads = first.top(k)
    else:
        heads = seed_overlap(maps, k_per_seed=k).heads(at_least)
        settings |= {"seeds": [m.settings["seed"] for m in maps], "at_least": at_least or len(maps)}
    if not heads:
        raise SettingError(
            f"at_least must be a number of seeds that agree on a head, got {at_least or len(maps)} "
            f"with k = {k}. Lower it or raise k."
        )
    return Selection(
        heads=heads,
        method=str(first.settings["method"]),
        token="; ".join(dict.fromkeys(one.token for one in maps)),
        k=k,
        mode=mode,
        reference=_reference(mode),
        model=first.model,
        bias=first.bias,
        data=fingerprints(
            prompts={text for one in maps for text in (*one.prompts, *one.neutral_prompts)},
            targets={target for one in maps for target in one.label_targets},
            texts=load_passages("reference") if mode == "mean" else (),
        ),
        settings=settings,
        versions=versions(),
    )


def fingerprints(**items: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By kind, what a choice has seen, as a :class:`Selection` keeps it."""
    return {kind: tuple(sorted(map(_fingerprint, texts))) for kind, texts in items.items()}


def searched(
    search: Any,
    model: HookedTransformer,
    biases: Sequence[Bias],
    told: Mapping[str, Any],
    **found: Any,
) -> Selection:
    """What a search chose, with its settings, what else is ``told`` of it, and all that it has
    seen."""
    return Selection(
        model=model.cfg.model_name,
        bias=" and ".join(bias.name for bias in biases),
        reference=_reference(found["mode"]),
        data=fingerprints(
            prompts={p for bias in biases for p in (*bias.scoping_prompts, *panel_prompts(bias))},
            targets={target for bias in biases for target in bias.targets("fitting")},
            texts=load_passages("budget") + load_passages("reference"),
            facts=[fact.question for fact in load_facts("budget")],
        ),
        settings={**dataclasses.asdict(search), **told},
        versions=versions(),
        **found,
    )


def panel_prompts(bias: Bias) -> list[str]:
    """Those of the panel's fitting half, which a search may see."""
    halves = bias.panel.half("fitting").values() if bias.panel else ()
    return [prompt for half in halves for prompt in half.prompts]


def _reference(mode: str) -> str:
    return "shipped neutral text" if mode == "mean" else ""


def _fingerprint(text: str) -> str:
    """Hash of a text's words; case, spaces and punctuation at the ends make no difference."""
    return digest(" ".join(plain(text).casefold().split()).strip(" .,:;!?"))
