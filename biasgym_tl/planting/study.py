"""A study of plants: what each carries, and which methods find it. Finished steps are kept."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from biasgym_tl.allowed import HALVES
from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.errors import SettingError, StoreError, check_at_least, check_one_of
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.planting.asked import AMONG, FROM_SCREEN, METHODS, SCREEN, SEARCHES, SWEEPS
from biasgym_tl.planting.measure import specificity
from biasgym_tl.planting.plant import WAYS, plant
from biasgym_tl.planting.planted import Limits, Planted
from biasgym_tl.planting.rank_one import separability
from biasgym_tl.planting.recovery import Recovery, Removal, recovery, removal
from biasgym_tl.planting.sentences import bystanders, target_token
from biasgym_tl.planting.shipped import PLACES, layers_of, load_plant, told
from biasgym_tl.planting.taken_back import TakenBack, check_kls, take_back
from biasgym_tl.progress import Finished, make_now
from biasgym_tl.protocol.stages import kept_map
from biasgym_tl.protocol.steering import Rival
from biasgym_tl.scoping.compare import concentration
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.selection import Selection
from biasgym_tl.steps import Steps
from biasgym_tl.store import as_declared

N_HELD_OUT = 6
"""Evaluation prompts that removals are measured on."""
SHIPPED = "planting/data/plants.toml"
READING = 6
"""One of so many heads tells a target apart well enough to carry a plant alone, or of rank one."""
DRAWS = 3
"""Of heads, until a plant is accepted."""
WEAK = Limits(target=-math.inf)
ANY = Limits(*[math.inf] * len(Limits._fields))._replace(target=-math.inf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plant:
    """One plant of a study."""

    bias: str
    target: str
    n: int
    """Heads; 0: all."""
    place: str = "spread"
    """One of ``PLACES``."""
    way: str = "trained"
    dose: float = 5.0
    seed: int = 0
    """Draws the heads, and is the plant's."""
    half: str = "open"
    """``"closed"``: nothing may be tuned on it."""
    search: bool = False
    """Also ask the searches, which take minutes each."""
    inject: bool = False
    """Also train a BiasToken on the planted model, and ask the methods about that."""
    shipped: str = ""
    """Name of a shipped plant, which is taken as it is; what is said of it here must be true."""

    def check(self) -> None:
        """Refuse what could not be planted."""
        load_bias(self.bias)
        check_one_of("place of a plant", self.place, PLACES)
        check_one_of("way of a plant", self.way, WAYS)
        check_one_of("half of a plant", self.half, HALVES)
        check_at_least(0, n=self.n)
        if self.shipped:
            for name, true in told(load_plant(self.shipped)).items():
                check_one_of(f"{name} of a shipped plant", getattr(self, name), true)

    @property
    def name(self) -> str:
        """In words: ``"late, Denmark, 5 middle, trained, 0"``."""
        n = f"{self.n} {self.place}" if self.n else "all"
        return f"{self.bias}, {self.target}, {n}, {self.way}, {self.seed}"

    def draws(
        self, model: HookedTransformer, finished: Finished = make_now
    ) -> list[tuple[Head, ...]]:
        """Heads drawn by its seed from its layers, :data:`DRAWS` times. One head, or those whose
        ``W_O`` alone is changed, are of the :data:`READING` share that tells the target apart best.
        ``finished`` may look up how well each does.
        """
        n_layers, bias = model.cfg.n_layers, load_bias(self.bias)
        every = all_heads(n_layers, model.cfg.n_heads)
        pool = [h for h in every if h.layer in layers_of(self.place, n_layers)]
        if not self.n:
            return [every]
        if self.n == 1 or self.way != "trained":
            beside = bystanders(model, bias, self.target, seed=self.seed)
            told = finished(
                f"separability, {bias.name}",
                [bias.fingerprint(), self.target, self.seed],
                lambda: separability(model, bias, self.target, beside, seed=self.seed).tolist(),
            )
            pool.sort(key=lambda head: -told[head.layer][head.head])
            pool = pool[: max(self.n, len(pool) // READING)]
        if self.n > len(pool):
            raise SettingError(f"n of {self.name!r} must be at most {len(pool)}, got {self.n}.")
        rng = random.Random(self.seed)
        drawn = dict.fromkeys(tuple(rng.sample(pool, self.n)) for _ in range(9 * DRAWS))
        return list(drawn)[:DRAWS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantStudy:
    """Plants, and the methods that are asked for them."""

    plants: tuple[Plant, ...]
    model: str = "smollm2-135m-instruct"
    methods: tuple[str, ...] = tuple(METHODS)
    searches: tuple[str, ...] = tuple(SEARCHES)
    n_prompts: int = 4
    """Scoping prompts of each map, and fitting targets beside them."""
    n_targets: int = 1
    rivals: dict[str, Rival] = dataclasses.field(default_factory=dict)
    """Interventions that are asked to take each plant back (:func:`take_back`), by name; they see
    as many scoping prompts."""
    kl: tuple[float, ...] = (0.03,)
    """Damage that their dials are set to (nats per token)."""

    def __post_init__(self) -> None:
        for each in self.plants:
            each.check()
        for method in self.methods:
            check_one_of("methods", method, METHODS)
        for search in self.searches:
            check_one_of("searches", search, SEARCHES)
        for name, rival in self.rivals.items():
            rival.check(name)
        check_kls(self.kl)
        check_at_least(1, n_prompts=self.n_prompts, n_targets=self.n_targets)
        if FROM_SCREEN in self.searches and SCREEN not in self.methods:
            raise SettingError(f"methods must hold {SCREEN!r} for the search {FROM_SCREEN!r}.")
        names = [each.name for each in self.plants]
        if len({*names}) < len(names):
            raise SettingError("plants must be different ones, got one twice.")

    def of_half(self, half: str | None) -> PlantStudy:
        """The study of one half of the plants; None: of all."""
        if half is None:
            return self
        check_one_of("half", half, HALVES)
        some = tuple(each for each in self.plants if each.half == half)
        return dataclasses.replace(self, plants=some)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "study") -> PlantStudy:
        """Build it from what TOML gives.

        Raises:
            SettingError: there is no such key, or a value is of another type or outside its range.
        """
        try:
            given = dict(values)
            plants = [Plant(**as_declared(Plant, each)) for each in given.pop("plants")]
            rivals = {name: _rival(**each) for name, each in given.pop("rivals", {}).items()}
            return cls(plants=tuple(plants), rivals=rivals, **as_declared(cls, given))
        except (StoreError, TypeError, KeyError, AttributeError) as error:
            raise SettingError(f"{source} must be a study of plants, but: {error!r}.") from error


def _rival(method: str = "", **settings: Any) -> Rival:
    return Rival(method=method, settings=settings)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a study found of one plant."""

    plant: Plant
    planted: Planted
    refused: str
    """Why, if it is. Methods are asked all the same where it is only too weak."""
    recoveries: dict[str, Recovery]
    """By method and run."""
    removals: dict[str, Removal]
    """By method, of as many heads as there are carriers, the highest of the biased run."""
    effective_heads: dict[str, float]
    """By method and run, how many equal heads a map's positive values amount to."""
    taken_back: tuple[TakenBack, ...] = ()
    """By references and rivals."""


def run_study(
    study: PlantStudy,
    model: HookedTransformer,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Found]:
    """Make each plant and ask each method, on the planted model and on the original one.

    Maps are of the target itself (:func:`target_token`) beside fitting targets.
    """
    original = Steps.of(model)
    for i, each in enumerate(study.plants, start=1):
        say(f"plant {i} of {len(study.plants)}: {each.name}")
        planted = _made(each, model, original, progress, say)
        wrong = planted.unspecific()
        if planted.unspecific(WEAK):
            yield Found(each, planted, "; ".join(wrong), {}, {}, {})
            continue
        asking = _Asking(study, each, model, planted, original, progress, say)
        yield dataclasses.replace(asking.found(), refused="; ".join(wrong))


def _made(
    each: Plant,
    model: HookedTransformer,
    original: Steps,
    progress: bool,
    say: Callable[[str], None],
) -> Planted:
    """The first draw that is accepted, otherwise the last; or the shipped one."""
    if each.shipped:
        return load_plant(each.shipped)
    bias = load_bias(each.bias)
    options: dict[str, Any] = {"dose": each.dose, "seed": each.seed, "way": each.way}
    finished = original.finished(specificity)
    for heads in each.draws(model, original.finished(separability)):
        make = partial(
            plant, model, bias, heads, each.target, limits=ANY, finished=finished,
            progress=progress, **options,
        )  # fmt: skip
        uses = [bias.fingerprint(), list(map(str, heads)), each.target, options]
        planted = original.kept(f"plant {each.name}", uses, Planted, make, plant)
        wrong = planted.unspecific()
        say(f"  {planted!r}" + (f" refused: {'; '.join(wrong)}" if wrong else ""))
        if not wrong:
            break
    return planted


@dataclasses.dataclass(frozen=True)
class _Asking:
    """What every method makes of one plant."""

    study: PlantStudy
    plant: Plant
    model: HookedTransformer
    planted: Planted
    original: Steps
    progress: bool
    say: Callable[[str], None]

    def found(self) -> Found:
        bias = load_bias(self.plant.bias)
        few = dataclasses.replace(
            bias, scoping_prompts=bias.scoping_prompts[: self.study.n_prompts]
        )
        token = target_token(self.model, bias, self.planted.target)
        cheap = [name for name in self.study.methods if name not in SWEEPS]
        before = dict(self.maps(few, token, self.original, cheap))
        with self.planted.attached(self.model):
            steps = Steps.of(self.model)
            maps = dict(self.maps(few, token, steps, self.study.methods))
            chosen = dict(self.searched(few, token, maps, steps))
            injected = dict(self.injected(bias, few, steps)) if self.plant.inject else {}
        known = {n: recovery(v, self.planted, base=before.get(n)) for n, v in maps.items()}
        known |= {name: recovery(each, self.planted) for name, each in (chosen | injected).items()}
        biased = [name for name in maps if name.endswith("biased")]
        sets: dict[str, Any] = {name: maps[name].top(self.k) for name in biased} | chosen
        gone = {name: self.removal(bias, heads) for name, heads in sets.items() if len(heads)}
        counts = {n: concentration(v.values).effective_heads for n, v in maps.items()}
        return Found(self.plant, self.planted, "", known, gone, counts, self.taken_back(few))

    @property
    def k(self) -> int:
        return max(1, len(self.planted.carriers()))

    def maps(
        self, bias: Bias, token: BiasToken, steps: Steps, methods: Sequence[str]
    ) -> Iterator[tuple[str, HeadScores]]:
        """Of the model as it is now, by method and run."""
        for name in methods:
            scope = BiasScope(n_targets=self.study.n_targets, **METHODS[name])
            label = f"map {name}, {bias.name}"
            scores = kept_map(steps, label, scope, self.model, bias, token, progress=self.progress)
            if scope.contrast == "difference":
                yield f"{name}, difference", scores
                settings = {**scores.settings, "contrast": "biased"}
                scores = dataclasses.replace(scores, settings=settings)
            yield f"{name}, biased", scores

    def searched(
        self, bias: Bias, token: BiasToken, maps: dict[str, HeadScores], steps: Steps
    ) -> Iterator[tuple[str, Selection]]:
        """Heads that a search chooses on the planted model."""
        for name in self.study.searches if self.plant.search else ():
            search = SEARCHES[name](k=self.k)
            options: dict[str, Any] = {}
            if name == FROM_SCREEN:
                options["among"] = maps[f"{SCREEN}, biased"].top(AMONG)
            make = partial(
                search.select, self.model, bias, token, progress=self.progress, **options
            )
            uses = [repr(search), bias.fingerprint(), self.planted.target, repr(options)]
            label = f"search {name}, {bias.name}"
            yield name, steps.kept(label, uses, Selection, make, type(search))

    def injected(self, bias: Bias, few: Bias, steps: Steps) -> Iterator[tuple[str, HeadScores]]:
        """Maps of a BiasToken that was trained on the planted model."""
        inject = BiasInject.cpu()
        options: dict[str, Any] = {"seed": self.plant.seed, "progress": self.progress}
        uses = [dataclasses.asdict(inject), bias.fingerprint(), self.plant.seed]
        row = steps.trained(
            f"row on a plant, {bias.name}",
            uses,
            lambda epochs: inject.fit(self.model, bias, checkpoint=epochs, **options),
            BiasInject,
        )
        for name, scores in self.maps(few, row, steps, self.study.methods):
            yield f"{name}, trained row", scores

    def taken_back(self, few: Bias) -> tuple[TakenBack, ...]:
        """What rivals that see few scoping prompts take back."""
        few = dataclasses.replace(few, evaluation_prompts=few.evaluation_prompts[:N_HELD_OUT])
        given = self.model, few, self.planted, self.study.rivals, self.study.kl
        return tuple(take_back(*given, say=self.say)) if self.study.rivals else ()

    def removal(self, bias: Bias, heads: Any) -> Removal:
        """What bringing them to their mean does; the same heads are steered once."""
        few = dataclasses.replace(bias, evaluation_prompts=bias.evaluation_prompts[:N_HELD_OUT])
        about = getattr(heads, "factors", None), list(map(str, heads))
        return self.original.kept(
            f"removal {self.plant.name}",
            [few.fingerprint(), self.planted.W_O.tolist(), about],
            Removal,
            partial(removal, self.model, few, self.planted, heads, n_random=2),
            removal,
        )
