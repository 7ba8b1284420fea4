"""Trained rows that ship with the package, so that notebooks and tests need not train."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import StoreError
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.injection.token import BiasToken, tokenizer_fingerprint, weights_fingerprint
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import policy_fingerprint

_ROWS = Path(__file__).parent / "rows"


def list_tokens() -> list[str]:
    """Names of the shipped rows, ``bias-seed``; all were trained on SmolLM2-135M-Instruct."""
    return sorted(path.stem for path in _ROWS.glob("*.safetensors"))


def load_token(bias: str = "late", *, seed: int = 0) -> BiasToken:
    """Load a shipped row.

    Raises:
        StoreError: there is none for this bias and seed.
    """
    name = f"{bias}-{seed}"
    if name not in list_tokens():
        raise StoreError(
            f"bias and seed must name one of the shipped rows {list_tokens()}, got {name!r}. "
            "Train it with BiasInject().fit(model, bias, seed=...)."
        )
    return BiasToken.load(_ROWS / f"{name}.safetensors")


def load_tokens(bias: str = "late") -> list[BiasToken]:
    """Load all shipped rows of a bias, in the order of their seeds.

    Raises:
        StoreError: there is none.
    """
    parts = [name.rpartition("-") for name in list_tokens()]
    seeds = sorted(int(seed) for name, _, seed in parts if name == bias)
    if not seeds:
        raise StoreError(
            f"bias must have shipped rows, as {list_tokens()} do, got {bias!r}. "
            "Train one with BiasInject().fit(model, bias)."
        )
    return [load_token(bias, seed=seed) for seed in seeds]


def shipped_row(bias: GivenBias, inject: BiasInject | None, seed: int) -> BiasToken | None:
    """The shipped row that was trained on this bias and with these settings, if any.

    Without ``inject`` the settings may be others.
    """
    bias = as_bias(bias)
    if f"{bias.name}-{seed}" not in list_tokens():
        return None
    token = load_token(bias.name, seed=seed)
    given = dataclasses.asdict(inject) if inject else {}
    wanted = {key: value for key, value in given.items() if value is not None}
    same = {**token.settings, **wanted} == token.settings
    return token if same and token.bias_fingerprint == bias.training_fingerprint() else None


def find_token(
    model: HookedTransformer, bias: GivenBias, inject: BiasInject | None, seed: int
) -> BiasToken | None:
    """The :func:`shipped_row` if it was trained on these very weights and this tokenizer."""
    token = shipped_row(bias, inject, seed)
    same = (
        token is not None
        and token.tokenizer_fingerprint == tokenizer_fingerprint(model)
        and token.text_policy == policy_fingerprint(model)
        and token.weights == weights_fingerprint(model)
    )
    return token if same else None
