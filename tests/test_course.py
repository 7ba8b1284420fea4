"""The course: exercises are made from the solutions, and every check tells right from wrong.

The wrong answers are mistakes that students make. Each must fail with the message that names it.
"""

import contextlib
import copy
import importlib.util
import io
import random
import re
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.notebook
COURSE = Path(__file__).parents[1] / "notebooks" / "course"


def _module(name):
    spec = importlib.util.spec_from_file_location(f"course_{name}", COURSE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks, make_exercises = _module("tests"), _module("make_exercises")
SOLUTIONS = nbformat.read(COURSE / "solutions.ipynb", as_version=4)
EXERCISES = nbformat.read(COURSE / "exercises.ipynb", as_version=4)


def _tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


@pytest.fixture(scope="module")
def solved():
    """The functions of the solutions, by name."""
    names = {}
    for cell in (*_tagged(SOLUTIONS, "imports"), *_tagged(SOLUTIONS, "solution")):
        exec(compile(cell.source, cell.id, "exec"), names)
    return names


def test_exercises_are_made_from_the_solutions():
    made = make_exercises.exercises(SOLUTIONS)
    for notebook in (made, EXERCISES):
        nbformat.validate(notebook)
    assert [(c.id, c.cell_type, c.source) for c in EXERCISES.cells] == [
        (c.id, c.cell_type, c.source) for c in made.cells
    ]
    assert not any(cell.get("outputs") for cell in EXERCISES.cells)


def test_an_exercise_has_a_gap_and_its_solution_folded_below():
    cells = {cell.id: cell.source for cell in EXERCISES.cells}
    assert cells["ex-5b-solution"].splitlines()[2:] == [
        "    # your code",
        '    raise NotImplementedError("Write your code here first.")',
        "    # end of your code",
    ]
    folded = cells["ex-5b-solution-folded"]
    assert "\nreturn (1 + int((controls >= value).sum())) / (1 + len(controls))\n" in folded
    assert len(_tagged(EXERCISES, "solution")) == len(CHECKS)


def test_what_is_handed_out_is_whole_and_holds_no_solution():
    made = make_exercises.archive()
    assert made == make_exercises.archive()
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        texts = {Path(name).name: file.read(name).decode() for name in file.namelist()}
        assert {Path(name).parent.name for name in file.namelist()} == {"biasgym-course"}
    assert set(texts) == {"START.md", "exercises.ipynb", "tests.py"}
    given = nbformat.reads(texts["exercises.ipynb"], 4)
    nbformat.validate(given)
    without = [cell.id for cell in EXERCISES.cells if not cell.id.endswith("-folded")]
    assert [cell.id for cell in given.cells] == without
    sources = "\n".join(cell.source for cell in given.cells)
    assert sources.count("raise NotImplementedError") == len(CHECKS)
    assert "<summary>Hint 1" in sources and "<summary>Solution" not in sources
    for cell in _tagged(SOLUTIONS, "solution"):
        (solution,) = re.findall("# your code\n(.*?) *# end of", cell.source, re.DOTALL)
        assert solution not in sources, cell.id


def test_an_untouched_exercise_says_what_to_do():
    names = {}
    for cell in (*_tagged(EXERCISES, "imports"), *_tagged(EXERCISES, "solution")):
        exec(compile(cell.source, cell.id, "exec"), names)
    for check, exercise in CHECKS.items():
        with pytest.raises(NotImplementedError, match="Write your code here first"):
            getattr(checks, check)(names[exercise])


def test_difficulties_and_minutes_are_those_that_the_goals_name():
    cells = {cell.id: cell.source for cell in SOLUTIONS.cells}
    exercises = [cell.id.removesuffix("-solution") for cell in _tagged(SOLUTIONS, "solution")]
    rows = re.findall(r"^\| \d.*\| (.*) \| (\d+) \|$", cells["goals"], re.MULTILINE)
    assert sum(int(minutes) for _, minutes in rows) == 90
    (table,) = re.findall(r"^\| part .*(?:\n\|.*)*", cells["goals"], re.MULTILINE)
    assert table in (COURSE.parents[1] / "docs/teaching.md").read_text(encoding="utf-8")
    titles = [re.match("### Exercise (\\w+):", cells[name])[1] for name in exercises]
    assert ", ".join(names for names, _ in rows).split(", ") == titles
    stated = [re.search(r"^Difficulty (\d), (\d+) minutes\.$", cells[i], re.M) for i in exercises]
    assert {int(found[1]) for found in stated} == {1, 2, 3}
    assert sum(int(found[2]) for found in stated) < 70  # the rest is for reading and waiting


def test_a_solution_without_marks_is_refused():
    notebook = copy.deepcopy(SOLUTIONS)
    cell = _tagged(notebook, "solution")[0]
    cell.source = cell.source.replace("# end of your code", "")
    with pytest.raises(ValueError, match="cell ex-1a-solution must hold a solution"):
        make_exercises.exercises(notebook)


def test_cells_are_short_and_the_solutions_ran_without_errors():
    for notebook in (SOLUTIONS, EXERCISES):
        assert notebook.metadata.kernelspec.name == "python3"
        assert notebook.metadata.kernelspec.display_name == "Python 3"
        for cell in notebook.cells:
            if cell.cell_type == "code":
                limit = 20 if "solution" in cell.metadata.get("tags", []) else 15
                assert len(cell.source.splitlines()) <= limit, cell.id
    ran = [cell for cell in SOLUTIONS.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert not [o for cell in ran for o in cell.outputs if o.output_type == "error"]
    printed = "".join(o.get("text", "") for cell in ran for o in cell.outputs)
    assert all(f"{name}: all good" in printed for name in CHECKS)


CHECKS = {
    "check_frozen_direction": "frozen_direction",
    "check_head_attribution": "head_attribution",
    "check_all_heads": "all_heads",
    "check_difference_parts": "difference_parts",
    "check_zero_heads": "zero_heads",
    "check_zero_hook": "zeroed",
    "check_logits_with_row": "logits_with_row",
    "check_train_row": "train_row",
    "check_layer_matched": "layer_matched",
    "check_rank_p": "rank_p",
    "check_score_prompts": "score_prompts",
    "check_log_odds": "log_odds",
    "check_restored": "restored",
}
WRONG = []


def wrong(check, message):
    """Register a wrong answer with what the check must say to it."""

    def register(fn):
        WRONG.append(pytest.param(check, fn, message, id=f"{check}-{fn.__name__}"))
        return fn

    return register


@pytest.mark.parametrize(("check", "solution"), CHECKS.items())
@pytest.mark.parametrize("gradients", [True, False])
def test_solutions_pass(solved, capsys, check, solution, gradients):
    with torch.set_grad_enabled(gradients):
        getattr(checks, check)(solved[solution])
    assert capsys.readouterr().out == f"{check}: all good\n"


@pytest.mark.parametrize("check", CHECKS)
def test_a_function_that_returns_nothing_fails(check):
    with pytest.raises((AssertionError, TypeError)):
        getattr(checks, check)(lambda *arguments: None)


def test_every_check_meets_a_wrong_answer():
    assert {param.values[0] for param in WRONG} == set(CHECKS)
    assert set(CHECKS) == {name for name in dir(checks) if name.startswith("check_")}


# Wrong answers. 1a: the direction.


@wrong("check_frozen_direction", "forgot to divide by the norm's scale")
def no_scale(resid, norm_weight, difference, eps):
    return difference * norm_weight


@wrong("check_frozen_direction", "forgot the norm's weight")
def no_weight(resid, norm_weight, difference, eps):
    return difference / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt()


@wrong("check_frozen_direction", "eps is missing")
def no_eps(resid, norm_weight, difference, eps):
    return difference * norm_weight / resid.pow(2).mean(-1, keepdim=True).sqrt()


@wrong("check_frozen_direction", "forgot the square root")
def no_root(resid, norm_weight, difference, eps):
    return difference * norm_weight / (resid.pow(2).mean(-1, keepdim=True) + eps)


@wrong("check_frozen_direction", "mean of the squares, not their sum")
def sum_of_squares(resid, norm_weight, difference, eps):
    return difference * norm_weight / (resid.pow(2).sum(-1, keepdim=True) + eps).sqrt()


@wrong("check_frozen_direction", "each row of the batch has a scale of its own")
def one_scale(resid, norm_weight, difference, eps):
    return difference * norm_weight / (resid.pow(2).mean() + eps).sqrt()


@wrong("check_frozen_direction", "the scale is not frozen")
def not_frozen(resid, norm_weight, difference, eps):
    r = resid.clone().requires_grad_()
    normed = r / (r.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm_weight
    return torch.autograd.grad((normed * difference).sum(), r)[0]


@wrong("check_frozen_direction", "changed an argument in place")
def weighted_in_place(resid, norm_weight, difference, eps):
    difference *= norm_weight
    return difference / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt()


@wrong("check_frozen_direction", r"this is r \* d")
def with_resid(resid, norm_weight, difference, eps):
    return resid * difference * norm_weight / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt()


@wrong("check_frozen_direction", "is the root of the sum of squares")
def by_norm(resid, norm_weight, difference, eps):
    return difference * norm_weight / resid.norm(dim=-1, keepdim=True)


@wrong("check_frozen_direction", "is the root of a sum")
def by_norm_and_eps(resid, norm_weight, difference, eps):
    return difference * norm_weight / (resid.norm(dim=-1, keepdim=True) + eps)


@wrong("check_frozen_direction", "eps stands under the root")
def eps_outside(resid, norm_weight, difference, eps):
    return difference * norm_weight / (resid.pow(2).mean(-1, keepdim=True).sqrt() + eps)


@wrong("check_frozen_direction", r"use mean\(-1, keepdim=True\) \(The size of tensor")
def no_keepdim(resid, norm_weight, difference, eps):
    return difference * norm_weight / (resid.pow(2).mean(-1) + eps).sqrt()


@wrong("check_frozen_direction", r"the values are not. The worst, at \[\d, \d\], is")
def minus(resid, norm_weight, difference, eps):
    return -no_scale(resid, norm_weight, difference, eps)


# 1b: one head.


@wrong("check_head_attribution", "used the last head")
def last_head(z, W_O, direction, head):
    return (z[:, -1, -1] @ W_O[-1] * direction).sum(-1)


@wrong("check_head_attribution", "sliced the wrong axis")
def position_for_head(z, W_O, direction, head):
    return (z[:, head, -1] @ W_O[head] * direction).sum(-1)


@wrong("check_head_attribution", "read the first position")
def first_position(z, W_O, direction, head):
    return (z[:, 0, head] @ W_O[head] * direction).sum(-1)


@wrong("check_head_attribution", "summed over positions")
def all_positions(z, W_O, direction, head):
    return torch.einsum("bpd,dm,bm->b", z[:, :, head], W_O[head], direction)


@wrong("check_head_attribution", "averaged over positions")
def mean_position(z, W_O, direction, head):
    return (z.mean(1)[:, head] @ W_O[head] * direction).sum(-1)


@wrong("check_head_attribution", "normed the head's output by itself")
def own_norm(z, W_O, direction, head):
    wrote = z[:, -1, head] @ W_O[head]
    return (wrote / wrote.pow(2).mean(-1, keepdim=True).sqrt() * direction).sum(-1)


@wrong("check_head_attribution", "this is head 2, asked was head 3")
def fixed_head(z, W_O, direction, head):
    return (z[:, -1, 2] @ W_O[2] * direction).sum(-1)


@wrong("check_head_attribution", "counts from 0")
def head_from_1(z, W_O, direction, head):
    return (z[:, -1, head - 1] @ W_O[head - 1] * direction).sum(-1)


@wrong("check_head_attribution", "averaged over d_model")
def averaged_product(z, W_O, direction, head):
    return (z[:, -1, head] @ W_O[head] * direction).mean(-1)


@wrong("check_head_attribution", r"shape must be \(3,\), got \(3, 8\)")
def not_summed(z, W_O, direction, head):
    return z[:, -1, head] @ W_O[head] * direction


# 1c: all heads.


@wrong("check_all_heads", "as large as")
def the_long_way(z, W_O, direction):
    return torch.einsum("bhm,bm->bh", torch.einsum("bhd,hdm->bhm", z, W_O), direction)


@wrong("check_all_heads", "as large as")
def three_at_once(z, W_O, direction):
    return torch.einsum("bhd,hdm,bm->bh", z, W_O, direction)


@wrong("check_all_heads", "the axes are swapped")
def heads_first(z, W_O, direction):
    return torch.stack([(z[:, h] * (direction @ W_O[h].T)).sum(-1) for h in range(len(W_O))])


@wrong("check_all_heads", "summed over heads")
def summed(z, W_O, direction):
    return torch.einsum("bhd,hdm,bm->b", z, W_O, direction)


@wrong("check_all_heads", "mixed the axes of W_O")
def reshaped(z, W_O, direction):
    n_heads, d_head, d_model = W_O.shape
    u = direction @ W_O.reshape(d_head, n_heads, d_model).permute(1, 2, 0)
    return (z * u.transpose(0, 1)).sum(-1)


@wrong("check_all_heads", "a direction of its own")
def first_direction(z, W_O, direction):
    return (z * (W_O @ direction[0])).sum(-1)


# 2: the parts.


def parts_with(**changed):
    """Right parts but for some, each made from what the exercise is given."""

    def parts(model, cache, direction, b, n):
        layers = range(model.cfg.n_layers)
        attn, mlps = (
            sum(cache[name, i][:, -1] for i in layers) for name in ("attn_out", "mlp_out")
        )
        b_O, b_U = model.b_O.sum(0), model.b_U
        found = {
            "embed": (cache["embed"][:, -1] * direction).sum(-1),
            "heads": ((attn - b_O) * direction).sum(-1),
            "attn_bias": direction @ b_O,
            "mlps": (mlps * direction).sum(-1),
            "unembed_bias": (b_U[b] - b_U[n]).expand(len(direction)),
        }
        new = {name: fn(model, cache, direction, b, n) for name, fn in changed.items()}
        return {k: v for k, v in {**found, **new}.items() if v is not None}

    return parts


PART_MISTAKES = {
    "b_O_twice": ("b_O as well, which would count twice", {
        "heads": lambda m, c, d, *_: sum((c["attn_out", i][:, -1] * d).sum(-1) for i in range(3)),
    }),
    "no_b_O": ("'attn_bias' is missing", {"attn_bias": lambda *_: None}),
    "b_O_is_0": ("b_O is not 0", {"attn_bias": lambda m, c, d, *_: torch.zeros(len(d))}),
    "last_b_O": ("only the last layer", {"attn_bias": lambda m, c, d, *_: d @ m.b_O[-1]}),
    "b_U_is_0": ("b_U is not 0", {"unembed_bias": lambda *_: torch.tensor(0.0)}),
    "n_minus_b": ("sign is turned round", {
        "unembed_bias": lambda m, c, d, b, n: m.b_U[n] - m.b_U[b],
    }),
    "last_mlp": ("only the last layer", {
        "mlps": lambda m, c, d, *_: (c["mlp_out", 2][:, -1] * d).sum(-1),
    }),
    "first_embed": ("first position", {
        "embed": lambda m, c, d, *_: (c["embed"][:, 0] * d).sum(-1),
    }),
    "last_heads": ("heads: only the last layer is in it", {
        "heads": lambda m, c, d, *_: (
            c["z", 2][:, -1] * (m.W_O[2] @ d.T).permute(2, 0, 1)
        ).sum((1, 2)),
    }),
    "last_attn_out": ("only the last layer is in it.* leave b_O out", {
        "heads": lambda m, c, d, *_: (c["attn_out", 2][:, -1] * d).sum(-1),
    }),
    "b_U_through_d": ("goes through no direction", {
        "unembed_bias": lambda m, c, d, b, n: ((m.b_U[b] - m.b_U[n]) * d).sum(-1),
    }),
    "b_U_over_scale": ("no scale", {
        "unembed_bias": lambda m, c, d, b, n: (
            (m.b_U[b] - m.b_U[n])
            / (c["resid_post", 2][:, -1].pow(2).mean(-1) + m.cfg.eps).sqrt()
        ),
    }),
    "b_out_twice": ("b_out already", {
        "mlps": lambda m, c, d, *_: sum(
            ((c["mlp_out", i][:, -1] + m.b_out[i]) * d).sum(-1) for i in range(3)
        ),
    }),
    "b_out_with_b_O": ("biases of the MLPs too", {
        "attn_bias": lambda m, c, d, *_: d @ (m.b_O + m.b_out).sum(0),
    }),
    "scalar": (r"the shape must be \(3,\), .* got \(\). Use .expand", {
        "unembed_bias": lambda m, c, d, b, n: m.b_U[b] - m.b_U[n],
    }),
    "float": ("a tensor is expected, got float", {
        "unembed_bias": lambda m, c, d, b, n: float(m.b_U[b] - m.b_U[n]),
    }),
    "one_more": ("no part but", {"pos_embed": lambda m, c, d, *_: torch.zeros(len(d))}),
}  # fmt: skip
for case, (message, changed) in PART_MISTAKES.items():
    WRONG.append(
        pytest.param(
            "check_difference_parts",
            parts_with(**changed),
            message,
            id=f"check_difference_parts-{case}",
        )
    )


# 3: silence.


@wrong("check_zero_heads", "edited z in place")
def in_place(z, heads):
    z[:, :, heads] = 0
    return z


@wrong("check_zero_heads", "sliced the wrong axis")
def positions_zeroed(z, heads):
    z = z.clone()
    z[:, heads] = 0
    return z


@wrong("check_zero_heads", "the last one is d_head")
def last_axis_zeroed(z, heads):
    z = z.clone()
    z[..., heads] = 0
    return z


@wrong("check_zero_heads", "only the last position")
def answer_zeroed(z, heads):
    z = z.clone()
    z[:, -1, heads] = 0
    return z


@wrong("check_zero_heads", "nothing was zeroed")
def thrown_away(z, heads):
    z.clone()[:, :, heads] = 0
    return z


@wrong("check_zero_heads", "only the last head was zeroed")
def head_after_head(z, heads):
    for head in heads:
        zeroed = z.clone()
        zeroed[:, :, head] = 0
    return zeroed


def zeroing(edit, point="attn.hook_z"):
    """A context with one hook for every pair; ``edit(z, head)`` returns the new value."""

    @contextlib.contextmanager
    def context(model, heads):
        def hook(head):
            return lambda z, hook: edit(z, head)

        hooks = [(f"blocks.{layer}.{point}", hook(head)) for layer, head in heads]
        with model.hooks(fwd_hooks=hooks):
            yield

    return context


def without(z, head):
    z = z.clone()
    z[:, :, head] = 0
    return z


@wrong("check_zero_hook", "used the last head in every layer")
@contextlib.contextmanager
def late_binding(model, heads):
    hooks = [(f"blocks.{i}.attn.hook_z", lambda z, hook: without(z, head)) for i, head in heads]  # noqa: B023
    yield from _open(model, hooks)


def _open(model, hooks):
    with model.hooks(fwd_hooks=hooks):
        yield


@wrong("check_zero_hook", "only the last pair")
@contextlib.contextmanager
def last_pair(model, heads):
    yield from _open(model, [(f"blocks.{heads[-1][0]}.attn.hook_z", lambda z, hook: without(z, 0))])


@wrong("check_zero_hook", "in one layer only the last was zeroed")
@contextlib.contextmanager
def dict_of_layers(model, heads):
    with zeroing(without)(model, list(dict(heads).items())):
        yield


@wrong("check_zero_hook", "in every listed layer")
@contextlib.contextmanager
def product(model, heads):
    with zeroing(without)(model, [(layer, h) for layer, _ in heads for _, h in heads]):
        yield


@wrong("check_zero_hook", "got generator. Is the line @contextlib.contextmanager still above")
def no_decorator(model, heads):
    yield from _open(model, [])


@wrong("check_zero_hook", "must yield once")
@contextlib.contextmanager
def no_yield(model, heads):
    return None


@wrong("check_zero_hook", "second parameter must be named hook")
@contextlib.contextmanager
def other_name(model, heads):
    yield from _open(model, [("blocks.0.attn.hook_z", lambda z, point: z)])


@wrong("check_zero_hook", "still changed after the context")
@contextlib.contextmanager
def never_removed(model, heads):
    for layer, head in heads:
        model.add_hook(f"blocks.{layer}.attn.hook_z", lambda z, hook, head=head: without(z, head))
    yield


@wrong("check_zero_hook", "after an error inside")
@contextlib.contextmanager
def no_finally(model, heads):
    for layer, head in heads:
        model.add_hook(f"blocks.{layer}.attn.hook_z", lambda z, hook, head=head: without(z, head))
    yield
    model.reset_hooks()


@wrong("check_zero_hook", "a hook that was there before is gone")
@contextlib.contextmanager
def resets_all(model, heads):
    try:
        yield from never_removed.__wrapped__(model, heads)
    finally:
        model.reset_hooks()


@wrong("check_zero_hook", "the weights changed")
@contextlib.contextmanager
def edits_weights(model, heads):
    for layer, head in heads:
        model.blocks[layer].attn.W_O[head] = 0
    yield


def _edited_in_place(z, head):
    z[:, :, head] = 0
    return z


def _all_zero(out, head):
    return torch.zeros_like(out)


def _slice(out, head):
    out = out.clone()
    out[:, :, 5 * head : 5 * (head + 1)] = 0
    return out


def _last_position(z, head):
    z = z.clone()
    z[:, -1, head] = 0
    return z


def _no_return(z, head):
    without(z, head)


for edit, point, message in (
    (_edited_in_place, "attn.hook_z", "edited z in place"),
    (_all_zero, "attn.hook_z", "all heads of these layers were zeroed"),
    (_all_zero, "hook_attn_out", "output of the whole layer was zeroed"),
    (_slice, "hook_attn_out", "sliced the output of W_O"),
    (_last_position, "attn.hook_z", "only the last position"),
    (_no_return, "attn.hook_z", r"does it return z\?$"),
):
    name = f"check_zero_hook-{edit.__name__}-{point}"
    WRONG.append(pytest.param("check_zero_hook", zeroing(edit, point), message, id=name))


# 4: the row.


def functional(model, W_E, tokens):
    return torch.func.functional_call(model, {"embed.W_E": W_E}, (tokens,))


@wrong("check_logits_with_row", "no gradient reaches the row")
def new_parameter(model, row, tokens):
    return functional(model, torch.nn.Parameter(torch.cat([model.W_E, row[None]])), tokens)


@wrong("check_logits_with_row", "no gradient reaches the row")
def detached(model, row, tokens):
    return functional(model, torch.cat([model.W_E, row.detach()[None]]), tokens)


@wrong("check_logits_with_row", "no gradient reaches the row")
def swapped_for_a_call(model, row, tokens):
    old = model.embed.W_E
    model.embed.W_E = torch.nn.Parameter(torch.cat([model.W_E, row[None]]))
    logits = model(tokens)
    model.embed.W_E = old
    return logits


@wrong("check_logits_with_row", "full name is 'embed.W_E'")
def short_name(model, row, tokens):
    W_E = torch.cat([model.W_E, row[None]])
    return torch.func.functional_call(model, {"W_E": W_E}, (tokens,))


@wrong("check_logits_with_row", "the last old row was overwritten")
def overwritten(model, row, tokens):
    W_E = torch.cat([model.W_E[:-1], row[None]])
    return functional(model, W_E, tokens.clamp(max=model.cfg.d_vocab - 1))


@wrong("check_logits_with_row", "the model's own weights must stay")
def assigned(model, row, tokens):
    model.embed.W_E = torch.nn.Parameter(torch.cat([model.W_E, row[None]]))
    return model(tokens)


@wrong("check_logits_with_row", "an id is outside W_E")
def replaced_last(model, row, tokens):
    return functional(model, torch.cat([model.W_E[:-1], row[None]]), tokens)


@wrong("check_logits_with_row", "the row stands in front")
def in_front(model, row, tokens):
    return functional(model, torch.cat([row[None], model.W_E]), tokens)


@wrong("check_logits_with_row", "reads the last old row")
def clamped(model, row, tokens):
    return model(tokens.clamp(max=model.cfg.d_vocab - 1))


def training(
    positions=(-1,), parameters=None, fresh=True, clone=True, steps=None, lr=None, detach=True,
    optimizer_class=torch.optim.Adam,
):  # fmt: skip
    """A training with one mistake; ``steps`` and ``lr`` are functions of what is asked for."""

    def train(model, row, tokens, answers, n_steps_asked, lr_asked):
        row = (row.clone() if clone else row).requires_grad_()
        trained = parameters(model) if parameters else []
        optimizer = optimizer_class([row, *trained], lr=lr or lr_asked)
        for _ in range(steps(n_steps_asked) if steps else n_steps_asked):
            if fresh:
                optimizer.zero_grad()
            logits = functional(model, torch.cat([model.W_E, row[None]]), tokens)
            read = logits[:, list(positions)]
            target = answers[:, None].expand(-1, len(positions))
            cross_entropy(read.transpose(1, 2), target).backward()
            optimizer.step()
        return row.detach() if detach else row

    return train


for case, options, message in (
    ("first_position", {"positions": [0]}, "read at the first position"),
    ("all_positions", {"positions": range(4)}, "read at all positions"),
    ("all_weights", {"parameters": lambda m: m.requires_grad_().parameters()}, "weights moved"),
    ("no_zero_grad", {"fresh": False}, "call zero_grad"),
    ("same_row", {"clone": False}, "Train a clone"),
    ("one_too_few", {"steps": lambda n: n - 1}, "one step too few"),
    ("one_too_many", {"steps": lambda n: n + 1}, "one step too many"),
    ("three_steps", {"steps": lambda n: 3}, "n_steps is ignored"),
    ("no_steps", {"steps": lambda n: 0}, r"does the loss depend on it\?$"),
    ("fixed_lr", {"lr": 0.1}, "lr is ignored: 0.05 was asked for"),
    ("default_lr", {"lr": 1e-3}, "lr is ignored: pass it to the optimizer"),
    ("all_fixed", {"steps": lambda n: 3, "lr": 0.1}, "n_steps and lr are ignored"),
    ("sgd", {"optimizer_class": torch.optim.SGD}, "this is SGD"),
    ("adamw", {"optimizer_class": torch.optim.AdamW}, "this is AdamW"),
    ("with_grad", {"detach": False}, "return row.detach"),
):
    name = f"check_train_row-{case}"
    WRONG.append(pytest.param("check_train_row", training(**options), message, id=name))


@wrong("check_train_row", "weights moved")
def masked_gradient(model, row, tokens, answers, n_steps, lr):
    """All of ``W_E`` as one parameter, the gradient of the old rows masked: AdamW decays them."""
    W_E = torch.cat([model.W_E, row[None]]).requires_grad_()
    optimizer = torch.optim.AdamW([W_E], lr=lr)
    for _ in range(n_steps):
        optimizer.zero_grad()
        cross_entropy(functional(model, W_E, tokens)[:, -1], answers).backward()
        W_E.grad[:-1] = 0
        optimizer.step()
    model.embed.W_E.data = W_E.detach()[:-1]
    return W_E.detach()[-1]


# 5: the control.


def _sets(heads, n_draws, draw):
    layers = [layer for layer, _ in heads]
    return [draw(layers) for _ in range(n_draws)]


@wrong("check_layer_matched", "has other layers than the chosen set")
def any_layer(heads, n_heads, n_draws, seed):
    rng = random.Random(seed)
    every = [(layer, head) for layer in range(5) for head in range(n_heads)]
    return [rng.sample(every, len(heads)) for _ in range(n_draws)]


@wrong("check_layer_matched", "holds a head twice")
def with_replacement(heads, n_heads, n_draws, seed):
    rng = random.Random(seed)
    return _sets(heads, n_draws, lambda layers: [(i, rng.randrange(n_heads)) for i in layers])


def _drawn(rng, heads, pool):
    return [
        (layer, head)
        for layer in sorted({layer for layer, _ in heads})
        for head in rng.sample(pool(layer), sum(other == layer for other, _ in heads))
    ]


@wrong("check_layer_matched", "is never drawn")
def without_chosen(heads, n_heads, n_draws, seed):
    rng = random.Random(seed)

    def pool(layer):
        return [head for head in range(n_heads) if (layer, head) not in heads]

    return [_drawn(rng, heads, pool) for _ in range(n_draws)]


@wrong("check_layer_matched", "all sets are equal")
def seeded_each_time(heads, n_heads, n_draws, seed):
    return [_drawn(random.Random(seed), heads, lambda _: range(n_heads)) for _ in range(n_draws)]


@wrong("check_layer_matched", "counted from 0")
def counted_from_1(heads, n_heads, n_draws, seed):
    rng = random.Random(seed)
    return [_drawn(rng, heads, lambda _: range(1, n_heads + 1)) for _ in range(n_draws)]


@wrong("check_layer_matched", "the same seed must give the same sets")
def no_seed(heads, n_heads, n_draws, seed):
    rng = random.Random()
    return [_drawn(rng, heads, lambda _: range(n_heads)) for _ in range(n_draws)]


@wrong("check_layer_matched", "another seed must give other sets")
def fixed_seed(heads, n_heads, n_draws, seed):
    rng = random.Random(0)
    return [_drawn(rng, heads, lambda _: range(n_heads)) for _ in range(n_draws)]


@wrong("check_layer_matched", "400 sets are asked for, got 1")
def one_set(heads, n_heads, n_draws, seed):
    return [heads]


@wrong("check_rank_p", "the chosen set is not counted")
def share(value, controls):
    return float((controls >= value).double().mean())


@wrong("check_rank_p", "1 is missing above")
def no_1_above(value, controls):
    return int((controls >= value).sum()) / (1 + len(controls))


@wrong("check_rank_p", "1 is missing below")
def no_1_below(value, controls):
    return (1 + int((controls >= value).sum())) / len(controls)


@wrong("check_rank_p", "as large counts as well")
def ties_left_out(value, controls):
    return (1 + int((controls > value).sum())) / (1 + len(controls))


@wrong("check_rank_p", "smaller were counted")
def other_tail(value, controls):
    return (1 + int((controls <= value).sum())) / (1 + len(controls))


@wrong("check_rank_p", "the sign counts")
def two_sided(value, controls):
    return (1 + int((controls.abs() >= abs(value)).sum())) / (1 + len(controls))


# 6a: a map of several prompts.


def scoring(
    labels=None, position=-1, layers=None, sign=1, change=None, resid=None, W_O=None, pad=None
):
    """A map with one mistake."""

    def score(model, sequences, b_ids, n_ids):
        maps, first = [], None
        for i, sequence in enumerate(pad(sequences) if pad else sequences):
            i = i if labels is None else labels
            D = sign * (model.W_U[:, b_ids[i]] - model.W_U[:, n_ids[i]])
            _, cache = model.run_with_cache(torch.tensor([sequence]))
            order, of_heads = list(layers or range(3)), []
            for layer in order:
                read = (resid, layer) if resid and resid != "first" else ("resid_post", 2)
                r = cache[read][0, position]
                first = r if first is None else first
                r = first if resid == "first" else r
                d = D * model.ln_final.w / (r.pow(2).mean() + model.cfg.eps).sqrt()
                u = model.W_O[layer if W_O is None else W_O] @ d
                of_heads.append((cache["z", layer][0, position] * u).sum(-1))
            maps.append(torch.stack(of_heads))
        found = torch.stack(maps)
        return change(found) if change else found

    return score


for case, options, message in (
    ("first_labels", {"labels": 0}, "labels of its own"),
    ("first_position", {"position": 0}, "read at the last position"),
    ("from_the_end", {"layers": (2, 1, 0)}, "layers are in the wrong order"),
    ("n_minus_b", {"sign": -1}, "sign is turned round"),
    ("averaged", {"change": lambda found: found.mean(0)}, "keep one map for each"),
    ("layers_first", {"change": lambda found: found.transpose(0, 1)}, "prompts come first"),
    ("heads_first", {"change": lambda found: found.transpose(1, 2)}, "heads come after layers"),
    ("residual_of_layer", {"resid": "resid_post"}, "the scale is that of the final residual"),
    ("residual_before", {"resid": "resid_pre"}, "not resid_pre of each"),
    ("residual_between", {"resid": "resid_mid"}, "not resid_mid of each"),
    ("first_residual", {"resid": "first"}, "a residual of its own"),
    ("last_W_O", {"W_O": -1}, "W_O of its own"),
    ("padded", {"pad": lambda s: [each + [0] * (6 - len(each)) for each in s]}, "at the right"),
    ("padded_left", {"pad": lambda s: [[0] * (6 - len(each)) + each for each in s]}, "in front"),
):
    name = f"check_score_prompts-{case}"
    WRONG.append(pytest.param("check_score_prompts", scoring(**options), message, id=name))


# 6b: log-odds.


def odds(of_set, *, change=None, position=-1, other=None):
    """Log-odds with one mistake; ``of_set(logits, ids)`` is what a set of words gets."""

    def log_odds(model, sequences, attribute_ids, neutral_ids):
        found = []
        for sequence in sequences:
            row = model(torch.tensor([sequence]))[0, position]
            A = of_set(row, attribute_ids)
            found.append(other(A) if other else A - of_set(row, neutral_ids))
        found = torch.stack(found)
        return change(found) if change else found

    return log_odds


def _log_p(row, ids):
    return row.log_softmax(-1)[ids].logsumexp(0)


for case, fn, message in (
    ("n_minus_a", odds(_log_p, change=lambda x: -x), "the sign is turned round"),
    ("averaged", odds(_log_p, change=lambda x: x.mean()), "one value for each"),
    ("first_position", odds(_log_p, position=0), "not the first"),
    ("logits_added", odds(lambda row, ids: row[ids].sum()), "logits were added up"),
    ("logits_averaged", odds(lambda row, ids: row[ids].mean()), "logits were averaged"),
    ("logs_added", odds(lambda row, ids: row.log_softmax(-1)[ids].sum()), "log-prob.* added up"),
    ("p_averaged", odds(lambda row, ids: row.softmax(-1)[ids].mean().log()), "different size"),
    ("likeliest", odds(lambda row, ids: row[ids].max()), "only the likeliest word"),
    ("first_word", odds(lambda row, ids: row[ids[0]]), "only the first word"),
    ("no_log", odds(_log_p, change=torch.exp), "the log is missing"),
    ("p_difference", odds(lambda row, ids: row.softmax(-1)[ids].sum()), "difference of prob"),
    ("all_others", odds(_log_p, other=lambda A: A - (1 - A.exp()).log()), "all other words"),
    ("only_a", odds(_log_p, other=lambda A: A), "only A is in it"),
):
    WRONG.append(pytest.param("check_log_odds", fn, message, id=f"check_log_odds-{case}"))


@wrong("check_restored", "what each head brings alone")
def alone(delta, heads):
    return {head: delta([head]) - delta([]) for head in heads}


@wrong("check_restored", "sign is turned round")
def turned_round(delta, heads):
    whole = delta(heads)
    return {h: delta([other for other in heads if other != h]) - whole for h in heads}


@wrong("check_restored", "return a dict")
def no_dict(delta, heads):
    return [delta(heads) for _ in heads]


@pytest.mark.parametrize(("check", "fn", "message"), WRONG)
def test_wrong_answers_are_told_what_is_wrong(check, fn, message, capsys):
    with pytest.raises(AssertionError, match=message):
        getattr(checks, check)(fn)
    assert not capsys.readouterr().out
