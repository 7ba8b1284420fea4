"""Checks of the course's exercises, one a function.

Each compares with a value obtained another way, on small random tensors or models whose norm
weights and biases are random too. If it differs, the values of typical mistakes are tried, and the
message names the one that fits.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import HookedTransformer, HookedTransformerConfig


@torch.enable_grad()
def check_frozen_direction(fn: Callable[..., Tensor]) -> None:
    """``fn(resid, norm_weight, difference, eps)`` is the gradient where the scale is a constant."""
    resid, weight, D, eps = _randn(4, 8), 1 + 0.5 * _randn(8, seed=1), _randn(4, 8, seed=2), 0.3
    resid *= torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    scale = (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    of_sum = (resid.pow(2).sum(-1, keepdim=True) + eps).sqrt()
    rms, norm = resid.pow(2).mean(-1, keepdim=True).sqrt(), resid.norm(dim=-1, keepdim=True)

    def gradient(frozen: bool) -> Tensor:
        r = resid.clone().requires_grad_()
        s = scale if frozen else (r.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return torch.autograd.grad((r / s * weight * D).sum(), r)[0]

    own_scale = "each row of the batch has a scale of its own: use mean(-1, keepdim=True)"
    with _explained("check_frozen_direction", {"must match the size of tensor": own_scale}):
        got = _called(fn, resid, weight, D, eps)
    _check(
        "check_frozen_direction",
        got,
        gradient(frozen=True),
        {
            "this is r * d: leave r out, it is multiplied later": resid * D * weight / scale,
            "you forgot to divide by the norm's scale": D * weight,
            "you forgot the norm's weight": D / scale,
            "the scale is not frozen: treat it as a number": gradient(frozen=False),
            "eps is missing under the root": D * weight / rms,
            "eps stands under the root, not outside": D * weight / (rms + eps),
            ".norm() is the root of the sum of squares: the scale takes their mean": (
                D * weight / norm
            ),
            ".norm() is the root of a sum: take the mean, and eps under the root": (
                D * weight / (norm + eps)
            ),
            "you forgot the square root": D * weight / scale**2,
            "the scale takes the mean of the squares, not their sum": D * weight / of_sum,
            own_scale: D * weight / (resid.pow(2).mean() + eps).sqrt(),
        },
    )


@torch.no_grad()
def check_head_attribution(fn: Callable[..., Tensor]) -> None:
    """``fn(z, W_O, direction, head)``, term by term in Python."""
    z, W_O, d, head = _randn(3, 5, 6, 4), _randn(6, 4, 8, seed=1), _randn(3, 8, seed=2), 3
    expected = torch.tensor(
        [
            sum(
                float(z[i, -1, head, j] * W_O[head, j, m] * d[i, m])
                for j in range(4)
                for m in range(8)
            )
            for i in range(3)
        ]
    )

    def dot(z: Tensor, W_O: Tensor, d: Tensor = d) -> Tensor:
        return (z @ W_O * d).sum(-1)

    at_answer = z[:, -1, head]
    unit = at_answer @ W_O[head]
    others = {
        f"this is head {other}, asked was head {head}: use the argument, which counts from 0": (
            dot(z[:, -1, other], W_O[other])
        )
        for other in range(5)
        if other != head
    }
    _check(
        "check_head_attribution",
        _called(fn, z, W_O, d, head),
        expected,
        {
            "you used the last head": dot(z[:, -1, -1], W_O[-1]),
            **others,
            "you averaged over d_model: a product of vectors is a sum": expected / d.shape[-1],
            "you sliced the wrong axis of z: positions come before heads": dot(
                z[:, head, -1], W_O[head]
            ),
            "you read the first position: the answer is read at the last one": dot(
                z[:, 0, head], W_O[head]
            ),
            "you summed over positions: only the last one counts": dot(
                z[:, :, head].sum(1), W_O[head]
            ),
            "you averaged over positions: only the last one counts": dot(
                z[:, :, head].mean(1), W_O[head]
            ),
            "z is of the asked head, W_O of the last": dot(at_answer, W_O[-1]),
            "z is of the asked head, W_O of the first": dot(at_answer, W_O[0]),
            "every row of the batch has a direction of its own": dot(at_answer, W_O[head], d[:1]),
            "you normed the head's output by itself: the scale is already in the direction": (
                unit / unit.pow(2).mean(-1, keepdim=True).sqrt() * d
            ).sum(-1),
        },
    )


@torch.no_grad()
def check_all_heads(fn: Callable[..., Tensor]) -> None:
    """``fn(z, W_O, direction)``, by what each head writes; no tensor of that size is allowed."""
    batch, n_heads, d_head, d_model = 24, 3, 4, 16
    z, d = _randn(batch, n_heads, d_head), _randn(batch, d_model, seed=2)
    W_O = _randn(n_heads, d_head, d_model, seed=1)
    written = torch.stack([z[:, head] @ W_O[head] for head in range(n_heads)], 1)
    expected = (written * d[:, None]).sum(-1)
    largest = _LargestTensor()
    with largest:
        got = _called(fn, z, W_O, d)
    as_read = W_O.reshape(d_head, n_heads, d_model).transpose(0, 1)
    _check(
        "check_all_heads",
        got,
        expected,
        {
            "the axes are swapped: heads come last": expected.T,
            "you summed over heads: keep one value for each": expected.sum(-1),
            "every row of the batch has a direction of its own": (written * d[0]).sum(-1),
            "you mixed the axes of W_O: heads come first, then d_head": (
                torch.stack([z[:, head] @ as_read[head] for head in range(n_heads)], 1) * d[:, None]
            ).sum(-1),
        },
        done=False,
    )
    assert largest.n_bytes < written.numel() * 4, (
        f"check_all_heads: the values are right, but a tensor of {largest.n_bytes} bytes was "
        f"formed, as large as [batch, head, d_model]. Multiply W_O with the direction first: that "
        "leaves [batch, head, d_head]. (einsum with three tensors works from left to right.)"
    )
    _good("check_all_heads")


@torch.no_grad()
def check_difference_parts(fn: Callable[..., dict[str, Tensor]]) -> None:
    """``fn(model, cache, direction, b, n)``: parts by removal, their sum by the model's logits."""
    model = _model(seed=3)
    tokens, b, n = torch.randint(20, (3, 5), generator=_seeded(4)), 7, 2
    logits, cache = model.run_with_cache(tokens)
    delta = logits[:, -1, b] - logits[:, -1, n]
    resid, D = cache["resid_post", 2][:, -1], model.W_U[:, b] - model.W_U[:, n]
    scale = (resid.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()

    def without(written: Tensor) -> Tensor:
        """By how much the difference falls if this is taken out and the scale stays."""
        return ((resid - (resid - written)) / scale * model.ln_final.w) @ D

    layers = range(model.cfg.n_layers)
    attn = [cache["attn_out", layer][:, -1] for layer in layers]
    mlp = [cache["mlp_out", layer][:, -1] for layer in layers]
    b_O = torch.stack([block.attn.b_O for block in model.blocks])
    b_out = torch.stack([block.mlp.b_out for block in model.blocks]).sum(0).expand(3, -1)
    of_b_U = model.b_U[b] - model.b_U[n]
    expected = {
        "embed": without(cache["embed"][:, -1]),
        "heads": without(sum(attn) - b_O.sum(0)),
        "attn_bias": without(b_O.sum(0).expand(3, -1)),
        "mlps": without(sum(mlp)),
        "unembed_bias": of_b_U.expand(3),
    }
    assert torch.allclose(sum(expected.values()), delta, atol=1e-3)
    one_layer = "only the last layer is in it: add up all layers"
    through_norm = "b_U is added after the norm: it goes through no direction and no scale"
    direction = model.ln_final.w * D / scale
    mistakes = {
        "embed": {
            "you read the first position": without(cache["embed"][:, 0]),
            "this is the whole residual": without(resid),
        },
        "heads": {
            "attn_out holds b_O as well, which would count twice": without(sum(attn)),
            one_layer: without(attn[-1] - b_O[-1]),
            f"{one_layer}, and leave b_O out": without(attn[-1]),
        },
        "attn_bias": {
            one_layer: without(b_O[-1].expand(3, -1)),
            "this holds the biases of the MLPs too: mlp_out has them already": without(
                b_O.sum(0) + b_out
            ),
            "b_O must go through the direction, as all that is written": b_O.sum().expand(3),
            "b_O is not 0 in this model": torch.zeros(3),
        },
        "mlps": {
            one_layer: without(mlp[-1]),
            "mlp_out holds b_out already, which counts twice here": without(sum(mlp) + b_out),
        },
        "unembed_bias": {
            "b_U is not 0 in this model": torch.zeros(3),
            "the sign is turned round: b minus n": -of_b_U.expand(3),
            through_norm: of_b_U * direction.sum(-1),
            f"{through_norm} (divided by s)": of_b_U / scale[:, 0],
        },
    }
    parts = fn(model, cache, direction, b, n)
    name = "check_difference_parts"
    assert isinstance(parts, dict), f"{name}: return a dict, got {type(parts).__name__}."
    for part, value in expected.items():
        assert part in parts, f"{name}: the part {part!r} is missing, so the sum cannot be right."
        got = parts[part]
        one = isinstance(got, Tensor) and got.shape in ((), (1,))  # for all rows of the batch
        _check(f"{name}, {part}", got.expand(3) if one else got, value, mistakes[part], done=False)
        assert not one, (
            f"{name}, {part}: the value is right, but the shape must be (3,), one value for each "
            f"row of the batch, got {tuple(got.shape)}. Use .expand(len(direction))."
        )
    extra = set(parts) - set(expected)
    assert not extra, f"{name}: no part but {list(expected)} is needed, got {sorted(extra)} too."
    _good(name)


@torch.no_grad()
def check_zero_heads(fn: Callable[..., Tensor]) -> None:
    """``fn(z, heads)``, by multiplication with a mask."""
    z, heads = 1 + _randn(2, 5, 4, 6).abs(), [1, 3]
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None]
    wrong_axis, last_axis, answer_only = z.clone(), z.clone(), z.clone()
    wrong_axis[:, heads] = 0
    last_axis[..., heads] = 0
    answer_only[:, -1, heads] = 0
    _check(
        "check_zero_heads",
        _called(fn, z, heads, in_place="you edited z in place: clone it first"),
        z * mask,
        {
            "nothing was zeroed: did you edit a copy that is thrown away?": z,
            "you sliced the wrong axis: positions come before heads": wrong_axis,
            "you sliced the wrong axis: the last one is d_head, heads come before it": last_axis,
            "only the last position was zeroed: take all of them": answer_only,
            "the others were zeroed: keep these": z * (1 - mask),
            "only the last head was zeroed": z * torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None],
        },
    )


@torch.no_grad()
def check_zero_hook(fn: Callable[..., Any]) -> None:
    """``with fn(model, heads)``, by zeroing rows of ``W_O`` in a copy of the model."""
    name, model = "check_zero_hook", _model(seed=5)
    heads = [(0, 1), (0, 3), (2, 0)]
    tokens = torch.randint(20, (2, 6), generator=_seeded(6))
    before, weights = model(tokens), _weights(model)
    context = fn(model, heads)
    assert hasattr(context, "__enter__"), (
        f"{name}: a context manager is expected, got {type(context).__name__}. Is the line "
        "@contextlib.contextmanager still above the function, and does it yield?"
    )
    hints = {
        "unexpected keyword argument 'hook'": "a hook is called as function(z, hook=point), so its "
        "second parameter must be named hook",
        "is not an iterator": "the function must yield once, with the hooks in place",
    }
    with _explained(name, hints), context:
        got = model(tokens)
        same = _same(weights, _weights(model))
    assert same, f"{name}: the weights changed inside the context. Hook hook_z, leave W_O alone."
    _check(name, got, _without_heads(model, heads, tokens), _zeroing_mistakes(model, heads, tokens),
           done=False)  # fmt: skip
    assert torch.equal(model(tokens), before), (
        f"{name}: the model is still changed after the context. Remove the hooks on leaving."
    )
    with contextlib.suppress(KeyError), fn(model, heads):
        raise KeyError
    assert torch.equal(model(tokens), before), (
        f"{name}: after an error inside the context the hooks are still there. Use try and "
        "finally, or the context model.hooks(...)."
    )
    seen: list[Tensor] = []
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: seen.append(z))
    with fn(model, heads):
        model(tokens)
    assert bool((seen[0][:, :, 1] != 0).any()), (
        f"{name}: you edited z in place, so a hook that had stored it finds zeros. Clone it first."
    )
    model(tokens)
    assert len(seen) == 2, (
        f"{name}: a hook that was there before is gone. reset_hooks() removes all of them: remove "
        "only your own."
    )
    _good(name)


@torch.enable_grad()
def check_logits_with_row(fn: Callable[..., Tensor]) -> None:
    """``fn(model, row, tokens)``, by putting the row in at ``hook_embed``."""
    name, model = "check_logits_with_row", _model(seed=7)
    d_vocab, weights = model.cfg.d_vocab, _weights(model)
    last = d_vocab - 1
    tokens = torch.tensor([[3, d_vocab, 5, 1], [0, last, 4, d_vocab]])
    row = _randn(model.cfg.d_model, seed=8).requires_grad_()
    full_name = "the parameter's full name is 'embed.W_E', as in model.named_parameters()"
    hints = {
        "index out of range": "an id is outside W_E. The new row stands behind the last one, so "
        f"that the new id is d_vocab; {full_name}",
        "out of bounds": "an id is outside W_E. The new row stands behind the last one",
        "property 'W_E'": full_name,
        "can't set attribute": full_name,  # Python 3.10
    }
    with _explained(name, hints):
        got = fn(model, row, tokens)
    same = "W_E" in model.embed._parameters and _same(weights, _weights(model))
    assert same, f"{name}: the model's own weights must stay. Use functional_call."
    in_front = torch.cat([row.detach()[None], model.W_E])[tokens]
    mistakes = {
        "the row stands in front, so all ids moved by one: it comes last": _from_embed(
            model, in_front
        ),
        "the new id reads the last old row: append the new one": _from_embed(
            model, model.W_E[tokens.clamp(max=last)]
        ),
        "the last old row was overwritten: it must stay, the new one comes behind it": _from_embed(
            model, torch.cat([model.W_E[:-1], row.detach()[None]])[tokens.clamp(max=last)]
        ),
    }
    _check(name, got, _with_row(model, row, tokens), mistakes, done=False)
    if got.requires_grad:
        got.sum().backward()
    assert row.grad is not None and bool(row.grad.any()), (
        f"{name}: no gradient reaches the row. nn.Parameter(...) and .detach() cut it off: give "
        "functional_call the plain result of torch.cat."
    )
    _good(name)


@torch.enable_grad()
def check_train_row(fn: Callable[..., Tensor]) -> None:
    """``fn(model, row, tokens, answers, n_steps, lr)``, by training at ``hook_embed``."""
    name, model = "check_train_row", _model(seed=9)
    d_vocab = model.cfg.d_vocab
    tokens = torch.tensor([[3, d_vocab, 5, 1], [0, d_vocab, 4, 2], [d_vocab, 6, 6, 6]])
    answers, start = torch.tensor([7, 11, 7]), _randn(model.cfg.d_model, seed=10)
    weights = _weights(model)
    arguments = (model, start.clone(), tokens, answers, 5, 0.05)  # not the defaults

    def trained(
        n_steps: int = 5,
        lr: float = 0.05,
        optimizer_class: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        positions: Sequence[int] = (-1,),
        accumulate: bool = False,
    ) -> Tensor:
        row = start.clone().requires_grad_()
        optimizer = optimizer_class([row], lr=lr)
        for _ in range(n_steps):
            if not accumulate:
                optimizer.zero_grad()
            read = _with_row(model, row, tokens)[:, list(positions)].flatten(0, 1)
            cross_entropy(read, answers.repeat_interleave(len(positions))).backward()
            optimizer.step()
        return row.detach()

    got = fn(*arguments)
    assert _same(weights, _weights(model)), (
        f"{name}: other weights moved. Give the optimizer the row alone."
    )
    assert isinstance(got, Tensor), f"{name}: return the row, got {type(got).__name__}."
    assert not got.requires_grad, f"{name}: return row.detach(), a plain tensor."
    assert torch.equal(arguments[1], start), (
        f"{name}: the row that was given changed too. Train a clone of it."
    )
    mistakes = {
        "the row did not move: does the loss depend on it?": start,
        "gradients of earlier steps are added up: call zero_grad() in each": trained(
            accumulate=True
        ),
        "the loss is read at the first position: take the last": trained(positions=[0]),
        "the loss is read at all positions: take the last": trained(positions=range(4)),
        "n_steps is ignored: 5 were asked for, 3 were made": trained(3),
        "one step too few": trained(4),
        "one step too many": trained(6),
        "lr is ignored: 0.05 was asked for, 0.1 was taken": trained(lr=0.1),
        "lr is ignored: pass it to the optimizer, whose default is 0.001": trained(lr=0.001),
        "n_steps and lr are ignored: 3 steps were made, with lr 0.1": trained(3, lr=0.1),
        "this is SGD: use torch.optim.Adam": trained(optimizer_class=torch.optim.SGD),
        "this is AdamW, which also pulls the row toward 0: use torch.optim.Adam": trained(
            optimizer_class=torch.optim.AdamW
        ),
    }
    _check(name, got, trained(), mistakes)


@torch.no_grad()
def check_layer_matched(fn: Callable[..., list[list[tuple[int, int]]]]) -> None:
    """``fn(heads, n_heads, n_draws, seed)``, by counting."""
    name, n_heads, n_draws = "check_layer_matched", 5, 400
    chosen = [(1, 0), (4, 2), (4, 3)]
    draws = [list(draw) for draw in fn(chosen, n_heads, n_draws, 0)]
    assert len(draws) == n_draws, f"{name}: {n_draws} sets are asked for, got {len(draws)}."
    for draw in draws:
        inside = all(0 <= head < n_heads for _, head in draw)
        assert inside, f"{name}: heads are counted from 0 to n_heads - 1, got {draw}."
        assert len(set(draw)) == len(draw), (
            f"{name}: {draw} holds a head twice. Draw without replacement."
        )
        assert Counter(layer for layer, _ in draw) == {1: 1, 4: 2}, (
            f"{name}: {draw} has other layers than the chosen set, which has one head in layer 1 "
            "and two in layer 4."
        )
    assert len({tuple(sorted(draw)) for draw in draws}) > 1, (
        f"{name}: all sets are equal. Make the generator once, before the loop."
    )
    count = Counter(head for draw in draws for head in draw)
    never = [head for head in chosen if not count[head]]
    assert not never, (
        f"{name}: {never} of the chosen set is never drawn. A random set may hold chosen heads: "
        "only then is the chosen set one of the sets that chance could have drawn."
    )
    for layer, share in ((1, 1 / n_heads), (4, 2 / n_heads)):
        for head in range(n_heads):
            assert abs(count[(layer, head)] / n_draws - share) < 0.12, (
                f"{name}: head {head} of layer {layer} is in {count[(layer, head)]} of {n_draws} "
                f"sets. Every head of a layer must be equally likely ({share:.0%})."
            )
    again, other = ([list(draw) for draw in fn(chosen, n_heads, n_draws, seed)] for seed in (0, 1))
    assert again == draws, f"{name}: the same seed must give the same sets."
    assert other != draws, f"{name}: another seed must give other sets."
    _good(name)


@torch.no_grad()
def check_rank_p(fn: Callable[..., float]) -> None:
    """``fn(value, controls)``, by the place of the value among all values, itself included."""
    controls = [0.1, -2.0, 0.5, 0.5, 1.0, 3.0, -0.3, -0.1]
    for value in (0.5, 4.0, -3.0, 0.2):
        all_values, n = [value, *controls], len(controls)
        expected = sum(other >= value for other in all_values) / len(all_values)
        reached = sum(control >= value for control in controls)
        beyond = sum(control > value for control in controls)
        mistakes = {
            "the chosen set is not counted: add 1 above and below, or p can be 0": reached / n,
            "1 is missing above: p can be 0": reached / (1 + n),
            "1 is missing below": (1 + reached) / n,
            "a control that is as large counts as well: use >=": (1 + beyond) / (1 + n),
            "the controls that are smaller were counted: a large value is the rare one": (
                1 + sum(control <= value for control in controls)
            )
            / (1 + n),
            "the sign counts: a set with a large negative effect is not as large, so no abs()": (
                1 + sum(abs(control) >= abs(value) for control in controls)
            )
            / (1 + n),
        }
        got = torch.as_tensor(fn(value, torch.tensor(controls)), dtype=torch.float32)
        tensors = {mistake: torch.tensor(wrong) for mistake, wrong in mistakes.items()}
        _check("check_rank_p", got, torch.tensor(expected), tensors, done=False)
    _good("check_rank_p")


@torch.no_grad()
def check_score_prompts(fn: Callable[..., Tensor]) -> None:
    """``fn(model, sequences, b_ids, n_ids)``, by taking out what a head wrote, scale unchanged."""
    model = _model(seed=11)
    sequences = [[1, 7, 9, 3], [1, 4], [5, 5, 5, 8, 2], [2, 9, 13], [6, 18, 3, 3, 10, 7]]
    b_ids, n_ids = [3, 7, 11, 19, 8], [2, 2, 15, 4, 1]  # 5 prompts, 3 layers, 4 heads
    padded = [sequence + [0] * (6 - len(sequence)) for sequence in sequences]
    padded_left = [[0] * (6 - len(sequence)) + sequence for sequence in sequences]

    def scores(sequences: Sequence[list[int]] = sequences, **changed: Any) -> Tensor:
        return _scores(model, sequences, b_ids, n_ids, **changed)

    of_layer = (
        "the scale is that of the final residual for all layers, since the norm reads this one: "
        "resid_post of the last layer"
    )
    _check(
        "check_score_prompts",
        fn(model, sequences, b_ids, n_ids),
        (expected := scores()),
        {
            "the sign is turned round: b minus n": -expected,
            "the average over prompts comes later: keep one map for each": expected.mean(0),
            "every prompt has labels of its own": _scores(
                model, sequences, b_ids[:1] * 5, n_ids[:1] * 5
            ),
            "the answer is read at the last position, not the first": scores(position=0),
            of_layer: scores(point="resid_post"),
            f"{of_layer}, not resid_pre of each": scores(point="resid_pre"),
            f"{of_layer}, not resid_mid of each": scores(point="resid_mid"),
            "every prompt has a residual of its own, so a scale of its own": scores(first=True),
            "with padding at the right the last position is no longer the answer's: run every "
            "sequence by itself": scores(padded),
            "padding in front is read as text: run every sequence by itself": scores(padded_left),
            "every layer has a W_O of its own, here it is the last one's": scores(
                W_O=model.W_O[-1:]
            ),
            "the layers are in the wrong order": expected.flip(1),
            "prompts come first, then layers": expected.transpose(0, 1),
            "heads come after layers": expected.transpose(1, 2),
        },
    )


@torch.no_grad()
def check_log_odds(fn: Callable[..., Tensor]) -> None:
    """``fn(model, sequences, attribute_ids, neutral_ids)``, by adding up probabilities."""
    model = _model(seed=12)
    sequences, A, N = [[1, 7, 9, 3], [1, 4], [5, 5, 5, 8, 2]], [3, 8], [2, 11, 15]
    logits = [model(torch.tensor([sequence]))[0] for sequence in sequences]
    row = torch.stack([each[-1] for each in logits])
    p, first = row.softmax(-1), torch.stack([each[0] for each in logits]).softmax(-1)
    p_A, p_N = p[:, A].sum(-1), p[:, N].sum(-1)
    expected = p_A.log() - p_N.log()
    _check(
        "check_log_odds",
        fn(model, sequences, A, N),
        expected,
        {
            "the sign is turned round: A minus N": -expected,
            "the average over prompts comes later: keep one value for each": expected.mean(),
            "the answer is read at the last position, not the first": (
                first[:, A].sum(-1) / first[:, N].sum(-1)
            ).log(),
            "logits were added up: probabilities add up, logits do not (logsumexp)": (
                row[:, A].sum(-1) - row[:, N].sum(-1)
            ),
            "log-probabilities were added up: add up probabilities, then take the log": (
                p[:, A].log().sum(-1) - p[:, N].log().sum(-1)
            ),
            "logits were averaged: add up probabilities, then take the log": (
                row[:, A].mean(-1) - row[:, N].mean(-1)
            ),
            "probabilities were averaged: A and N are of different size, add them up": (
                p[:, A].mean(-1) / p[:, N].mean(-1)
            ).log(),
            "only the likeliest word of each counts here: add up all": (
                row[:, A].amax(-1) - row[:, N].amax(-1)
            ),
            "only the first word of each counts here: add up all": row[:, A[0]] - row[:, N[0]],
            "the log is missing": p_A / p_N,
            "this is a difference of probabilities: take logs first": p_A - p_N,
            "this is against all other words: N holds those that count": (p_A / (1 - p_A)).log(),
            "only A is in it: subtract the same for N": p_A.log(),
        },
    )


def _check(
    name: str,
    got: Any,
    expected: Tensor,
    mistakes: Mapping[str, Tensor],
    *,
    done: bool = True,
) -> None:
    """Compare; if it differs, name the mistake whose value it is, otherwise show both."""
    assert got is not None, f"{name}: got None. Does the function return its result?"
    assert isinstance(got, Tensor), f"{name}: a tensor is expected, got {type(got).__name__}."
    if not _close(got, expected):
        for mistake, value in mistakes.items():
            end = "" if mistake.endswith("?") else "."
            assert not _close(got, value), f"{name}: {mistake}{end}"
        assert got.shape == expected.shape, (
            f"{name}: the shape must be {tuple(expected.shape)}, got {tuple(got.shape)}."
        )
        off = (got - expected).abs().nan_to_num(torch.inf)
        at = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
        worst = f"The worst, at {list(at)}," if at else "It"
        raise AssertionError(
            f"{name}: the shape is right and the values are not. {worst} is {got[at]:.4f} instead "
            f"of {expected[at]:.4f}."
        )
    if done:
        _good(name)


@contextlib.contextmanager
def _explained(name: str, hints: Mapping[str, str]) -> Iterator[None]:
    """An error whose text holds a key of ``hints`` becomes the message that belongs to it."""
    try:
        yield
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        for text, hint in hints.items():
            if text in str(error):
                raise AssertionError(f"{name}: {hint} ({error}).") from error
        raise


def _close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape:
        return False
    return torch.allclose(got.detach().float(), expected.detach().float(), rtol=1e-3, atol=1e-4)


def _good(name: str) -> None:
    print(f"{name}: all good")


def _called(fn: Callable[..., Any], *arguments: Any, in_place: str = "") -> Any:
    """Result of ``fn``, whose arguments must stay as they are."""
    before = copy.deepcopy(arguments)
    result = fn(*arguments)
    for old, new in zip(before, arguments, strict=True):
        same = torch.equal(old, new) if isinstance(old, Tensor) else old == new
        assert same, (
            f"{getattr(fn, '__name__', 'the function')}: "
            f"{in_place or 'you changed an argument in place: work on a copy'}."
        )
    return result


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_seeded(seed))


def _model(seed: int) -> HookedTransformer:
    """Three layers of four heads, all weights random: norm weights around 1, biases around 0."""
    cfg = HookedTransformerConfig(
        n_layers=3, d_model=24, n_heads=4, d_head=5, d_mlp=32, d_vocab=20, n_ctx=16,
        act_fn="silu", gated_mlp=True, normalization_type="RMS",
        positional_embedding_type="rotary", rotary_dim=4, device="cpu",
    )  # fmt: skip
    model, generator = HookedTransformer(cfg), _seeded(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            weight += name.endswith(".w")
    return model.requires_grad_(False)


def _weights(model: HookedTransformer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    same_names = before.keys() == after.keys()
    return same_names and all(torch.equal(weight, after[name]) for name, weight in before.items())


def _without_heads(
    model: HookedTransformer, heads: list[tuple[int, int]], tokens: Tensor
) -> Tensor:
    """Logits of a copy of the model in which rows of ``W_O`` are 0."""
    edited = copy.deepcopy(model)
    for layer, head in heads:
        edited.blocks[layer].attn.W_O[head] = 0
    return edited(tokens)


def _zeroing_mistakes(
    model: HookedTransformer, heads: list[tuple[int, int]], tokens: Tensor
) -> dict[str, Tensor]:
    layers, n_heads = sorted({layer for layer, _ in heads}), model.cfg.n_heads
    last_layer, last_head = heads[-1]

    def hooked(point: str, edit: Callable[..., Tensor]) -> Tensor:
        hooks = [(f"blocks.{layer}.{point}", edit) for layer in layers]
        return model.run_with_hooks(tokens, fwd_hooks=hooks)

    def at_answer(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, -1, [head for layer, head in heads if layer == hook.layer()]] = 0
        return z

    def slice_of_output(out: Tensor, hook: Any) -> Tensor:
        out = out.clone()
        for layer, head in heads:
            if layer == hook.layer():
                out[:, :, head * model.cfg.d_head : (head + 1) * model.cfg.d_head] = 0
        return out

    all_in = [(layer, head) for layer in layers for head in range(n_heads)]
    everywhere = [(layer, head) for layer in layers for head in {h for _, h in heads}]
    last_of_each = list(dict(heads).items())
    return {
        "nothing changed: is the hook registered, and does it return z?": model(tokens),
        "you used the last head in every layer: the hook reads a loop variable after the loop has "
        "ended. Bind it, e.g. by functools.partial or a default argument": _without_heads(
            model, [(layer, last_head) for layer in layers], tokens
        ),
        "you used only the last pair of layer and head": _without_heads(
            model, [(last_layer, last_head)], tokens
        ),
        "of two heads in one layer only the last was zeroed": _without_heads(
            model, last_of_each, tokens
        ),
        "all heads of these layers were zeroed, but not b_O": _without_heads(model, all_in, tokens),
        "every listed head was zeroed in every listed layer": _without_heads(
            model, everywhere, tokens
        ),
        "the output of the whole layer was zeroed (hook_attn_out): the site is hook_z": hooked(
            "hook_attn_out", lambda out, hook: torch.zeros_like(out)
        ),
        "you sliced the output of W_O, where heads are already mixed: the site is hook_z": hooked(
            "hook_attn_out", slice_of_output
        ),
        "only the last position was zeroed: take all of them": hooked("attn.hook_z", at_answer),
    }


def check_restored(fn: Callable[..., Mapping[Any, float]]) -> None:
    """``fn(delta, heads)``, where two heads need each other and a third works alone."""
    heads = [(0, 1), (1, 2), (1, 3)]

    def delta(changed: Sequence[tuple[int, int]]) -> float:
        both = (0, 1) in changed and (1, 2) in changed
        return 1.0 + 0.5 * ((0, 1) in changed) + 2.0 * both + 0.25 * ((1, 3) in changed)

    got = _called(fn, delta, heads)
    if not isinstance(got, Mapping) or list(got) != heads:
        raise AssertionError(f"restored: return a dict with the keys {heads}, in this order.")
    alone = [delta([head]) - delta([]) for head in heads]
    expected = torch.tensor([2.5, 2.0, 0.25])
    _check(
        "check_restored",
        torch.tensor([float(got[head]) for head in heads]),
        expected,
        {
            "this is what each head brings alone": torch.tensor(alone),
            "the sign is turned round: a fall is positive": -expected,
        },
    )


def _from_embed(model: HookedTransformer, embed: Tensor) -> Tensor:
    """Logits where the embeddings of all positions are given."""
    tokens = torch.zeros(embed.shape[:2], dtype=torch.long)
    return model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda _, hook: embed)])


def _with_row(model: HookedTransformer, row: Tensor, tokens: Tensor) -> Tensor:
    """Logits where ``row`` is the embedding of the id ``d_vocab``."""
    old = model.W_E[tokens.clamp(max=model.cfg.d_vocab - 1)]
    is_new = (tokens == model.cfg.d_vocab)[..., None]
    return _from_embed(model, torch.where(is_new, row, old))


def _scores(
    model: HookedTransformer,
    sequences: Sequence[list[int]],
    b_ids: list[int],
    n_ids: list[int],
    *,
    position: int = -1,
    point: str | None = None,
    first: bool = False,
    W_O: Tensor | None = None,
) -> Tensor:
    """By how much each difference falls when a head's output is taken out of the final residual.

    The rest are mistakes: the residual at ``point`` of each layer, that of the first sequence,
    another ``W_O``.
    """
    maps, residuals, layers = [], [], range(model.cfg.n_layers)
    for sequence, b, n in zip(sequences, b_ids, n_ids, strict=True):
        _, cache = model.run_with_cache(torch.tensor([sequence]))
        places = [(point, layer) for layer in layers] if point else [("resid_post", layers[-1])]
        residuals.append(torch.stack([cache[place][0, position] for place in places])[:, None])
        resid = residuals[0 if first else -1]  # [1 or n_layers, 1, d_model]
        scale = (resid.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
        D = model.W_U[:, b] - model.W_U[:, n]
        z = torch.stack([cache["z", layer][0, position] for layer in layers])
        wrote = (z[..., None] * (model.W_O if W_O is None else W_O)).sum(2)
        with_all, without = ((r / scale * model.ln_final.w) @ D for r in (resid, resid - wrote))
        maps.append(with_all - without)
    return torch.stack(maps)


class _LargestTensor(TorchDispatchMode):
    """Remembers the largest storage that an operation returned while the context was open."""

    n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.n_bytes = max(self.n_bytes, tensor.untyped_storage().nbytes())
        return result
