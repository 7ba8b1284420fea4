"""One optimizer step on one row of ``W_E``: what is computed, and nothing else."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from biasgym_tl.batches import cached_beginning, common_beginning, expanded, pad_right
from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import ModelError
from biasgym_tl.lens import HookedTransformer, check_numbers, embedded, final_resid, unembed
from biasgym_tl.prompts import check_length, encode_prompt, end_of_answer
from biasgym_tl.slot import fill

TOKENS_AT_ONCE = 512
"""A batch is run in parts of about so many tokens: the same gradient, less memory."""


class Example(NamedTuple):
    """A request with its answer; the loss is taken on ``tokens[answer_start:]``."""

    tokens: list[int]
    answer_start: int


def encode_example(model: HookedTransformer, request: str, answer: str) -> Example:
    """Token ids of a request, its answer and the token that ends an answer.

    Raises:
        ModelError: they are more than the model's context holds.
    """
    tokens = encode_prompt(model, request, answer) + end_of_answer(model)
    check_length(model, [tokens])
    return Example(tokens, answer_start=len(encode_prompt(model, request)))


def shared_beginning(model: HookedTransformer, bias: Bias, text: str, token_id: int) -> list[int]:
    """What all requests begin with before the BiasToken: it needs no gradient."""
    requests = [encode_prompt(model, fill(prompt, text)) for prompt in bias.training_prompts]
    end = min(request.index(token_id) for request in requests)
    return requests[0][: min(end, common_beginning(requests))]


class Trainer:
    """A row under training: its value (fp32), AdamW's state, and the step that moves them.

    The model is frozen, with the token attached. ``beginning`` holds the token ids that every
    example begins with, which are run once, without a gradient. After each step a row longer than
    ``max_norm`` is scaled back to that L2 norm.
    """

    def __init__(
        self,
        model: HookedTransformer,
        initial_row: Float[Tensor, " d_model"],
        token_id: int,
        *,
        beginning: Sequence[int],
        max_norm: float,
    ) -> None:
        """Start from ``initial_row``, in the scale of ``W_E``."""
        self.model, self.token_id, self.max_norm = model, token_id, max_norm
        self.row = initial_row.float().clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.row], weight_decay=0.0)
        self._n_shared = len(beginning)
        self._beginning = cached_beginning(model, beginning, 1)

    def restore(
        self,
        row: Float[Tensor, " d_model"],
        exp_avg: Float[Tensor, " d_model"],
        exp_avg_sq: Float[Tensor, " d_model"],
        n_steps: int,
    ) -> None:
        """Go on from a row and AdamW's moments after ``n_steps`` steps."""
        with torch.no_grad():
            self.row.copy_(row)
        if n_steps:
            self.optimizer.state[self.row] = {
                "step": torch.tensor(float(n_steps)),
                "exp_avg": exp_avg.to(self.row).clone(),
                "exp_avg_sq": exp_avg_sq.to(self.row).clone(),
            }

    def moments(self) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
        """AdamW's running means of the gradient and of its square."""
        state = self.optimizer.state[self.row]
        return state["exp_avg"].cpu().clone(), state["exp_avg_sq"].cpu().clone()

    def step(self, batch: Sequence[Example], lr: float) -> float:
        """One AdamW step on the mean cross-entropy of the answers' tokens.

        Returns:
            The loss before the step (nats per token).

        Raises:
            ModelError: loss or gradient is not finite; the row is left as it was.
        """
        n_predicted = sum(self._n_predicted(example) for example in batch)
        gradient, loss = torch.zeros_like(self.row), 0.0
        for part in self._parts(batch):
            with torch.enable_grad():
                part_loss = self.summed_loss(self.row, part) / n_predicted
            gradient += torch.autograd.grad(part_loss, self.row)[0]
            loss += part_loss.item()
        if torch.finfo(self.model.cfg.dtype).bits == 16:
            check_numbers(self.model, torch.tensor(loss), [example.tokens for example in batch])
        if not (math.isfinite(loss) and gradient.isfinite().all()):
            raise ModelError(
                f"loss and gradient must be finite, got a loss of {loss}. Use a lower lr, or load "
                "the model with dtype=torch.float32."
            )
        self.row.grad = gradient
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            self.row *= (self.max_norm / self.row.norm()).clamp(max=1)
        return loss

    def _parts(self, batch: Sequence[Example]) -> list[list[Example]]:
        """Split into parts of similar length and at most ``TOKENS_AT_ONCE`` tokens with padding."""
        parts: list[list[Example]] = [[]]
        for example in sorted(batch, key=lambda example: -len(example.tokens)):
            width = len((parts[-1] or [example])[0].tokens) - self._n_shared
            if parts[-1] and (len(parts[-1]) + 1) * width > TOKENS_AT_ONCE:
                parts.append([])
            parts[-1].append(example)
        return parts

    def _n_predicted(self, example: Example) -> int:
        return sum(token != self.token_id for token in example.tokens[example.answer_start :])

    def summed_loss(
        self, row: Float[Tensor, " d_model"], batch: Sequence[Example]
    ) -> Float[Tensor, ""]:
        """Cross-entropy (nats, summed) of the answers' tokens; only ``row`` gets a gradient.

        The BiasToken itself is left out: it has no logit to be predicted with.
        """
        model, n = self.model, self._n_shared
        tokens, mask = pad_right([e.tokens[n:] for e in batch], model.cfg.device)
        starts = torch.tensor([[e.answer_start - n] for e in batch], device=tokens.device)
        is_token = tokens == self.token_id
        in_answer = mask.bool() & (torch.arange(tokens.shape[1], device=tokens.device) >= starts)
        with _row_at(model, is_token, row):
            resid = final_resid(model, tokens, mask, expanded(self._beginning, len(batch)))
        predicting = (in_answer & ~is_token)[:, 1:]  # position i predicts token i + 1
        logits = unembed(model, resid[:, :-1][predicting])
        return torch.nn.functional.cross_entropy(logits, tokens[:, 1:][predicting], reduction="sum")


@contextlib.contextmanager
def _row_at(
    model: HookedTransformer, where: Bool[Tensor, "batch pos"], row: Float[Tensor, " d_model"]
) -> Iterator[None]:
    """Let the trainable row be the embedding at the marked positions."""

    def put(embed: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        vector = embedded(model, row.to(embed)[None, None])[0, 0].to(embed)
        return torch.where(where[..., None], vector, embed)

    with model.hooks(fwd_hooks=[("hook_embed", put)]):
        yield


@contextlib.contextmanager
def frozen(model: HookedTransformer) -> Iterator[None]:
    """No parameter asks for a gradient while the context is open."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def learning_rate(schedule: str, lr: float, step: int, n_steps: int) -> float:
    """Learning rate of step ``step`` of ``n_steps``.

    ``"cosine"``: from ``lr`` to 0 on half a cosine. ``"restarts"``: four such cosines of equal
    length, one after the other. ``"constant"``: ``lr``.
    """
    if schedule == "constant":
        return lr
    cycle = n_steps if schedule == "cosine" else math.ceil(n_steps / 4)
    return lr * (1 + math.cos(math.pi * (step % cycle) / cycle)) / 2
