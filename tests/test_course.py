"""The course: exercises are made from the solutions, and every check tells right from wrong.

The wrong answers are mistakes that students make. Each must fail with the message that names it.
"""

import contextlib
import copy
import importlib.util
import random
from pathlib import Path

import nbformat
import pytest
import torch
from torch.nn.functional import cross_entropy

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
        "    raise NotImplementedError",
        "    # end of your code",
    ]
    folded = cells["ex-5b-solution-folded"]
    assert "\nreturn (1 + int((controls >= value).sum())) / (1 + len(controls))\n" in folded
    assert len(_tagged(EXERCISES, "solution")) == len(CHECKS)


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
        assert "colab" in notebook.cells[0].source
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


@wrong("check_frozen_direction", "the shape is right and the values are not")
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
    (_no_return, "attn.hook_z", "nothing changed"),
):
    name = f"check_zero_hook-{edit.__name__}-{point}"
    WRONG.append(pytest.param("check_zero_hook", zeroing(edit, point), message, id=name))


# 4: the row.


def functional(model, W_E, tokens):
    return torch.func.functional_call(model, {"embed.W_E": W_E}, (tokens,))


@wrong("check_logits_with_row", "no gradient reaches the row")
def new_parameter(model, row, tokens):
    return functional(model, torch.nn.Parameter(torch.cat([model.W_E, row[None]])).data, tokens)


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


def training(position=-1, parameters=None, fresh=True, clone=True, n_steps=None, detach=True):
    """A training with one mistake."""

    def train(model, row, tokens, answers, n_steps_asked, lr):
        row = (row.clone() if clone else row).requires_grad_()
        trained = parameters(model) if parameters else []
        optimizer = torch.optim.Adam([row, *trained], lr=lr)
        for _ in range(n_steps or n_steps_asked):
            if fresh:
                optimizer.zero_grad()
            at_answer = functional(model, torch.cat([model.W_E, row[None]]), tokens)[:, position]
            cross_entropy(at_answer, answers).backward()
            optimizer.step()
        return row.detach() if detach else row

    return train


for case, options, message in (
    ("first_position", {"position": 0}, "read at the first position"),
    ("all_weights", {"parameters": lambda m: m.requires_grad_().parameters()}, "weights moved"),
    ("no_zero_grad", {"fresh": False}, "call zero_grad"),
    ("same_row", {"clone": False}, "Train a clone"),
    ("two_steps", {"n_steps": 2}, "one step too few"),
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


# 6: a map of several prompts.


def scoring(labels=None, position=-1, layers=None, sign=1, mean=False):
    """A map with one mistake."""

    def score(model, sequences, b_ids, n_ids):
        maps = []
        for i, sequence in enumerate(sequences):
            i = i if labels is None else labels
            D = sign * (model.W_U[:, b_ids[i]] - model.W_U[:, n_ids[i]])
            _, cache = model.run_with_cache(torch.tensor([sequence]))
            resid = cache["resid_post", 2][0, position]
            d = D * model.ln_final.w / (resid.pow(2).mean() + model.cfg.eps).sqrt()
            z = [cache["z", layer][0, position] for layer in layers or range(3)]
            u = model.W_O[list(layers or range(3))] @ d
            maps.append((torch.stack(z) * u).sum(-1))
        return torch.stack(maps).mean(0) if mean else torch.stack(maps)

    return score


for case, options, message in (
    ("first_labels", {"labels": 0}, "labels of its own"),
    ("first_position", {"position": 0}, "read at the last position"),
    ("from_the_end", {"layers": (2, 1, 0)}, "layers are in the wrong order"),
    ("n_minus_b", {"sign": -1}, "sign is turned round"),
    ("averaged", {"mean": True}, "keep one map for each"),
):
    name = f"check_score_prompts-{case}"
    WRONG.append(pytest.param("check_score_prompts", scoring(**options), message, id=name))


@pytest.mark.parametrize(("check", "fn", "message"), WRONG)
def test_wrong_answers_are_told_what_is_wrong(check, fn, message, capsys):
    with pytest.raises(AssertionError, match=message):
        getattr(checks, check)(fn)
    assert not capsys.readouterr().out
