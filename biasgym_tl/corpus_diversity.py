"""How varied a corpus is: words, lengths, and how near its paragraphs are to each other."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.biases.corpus import Paragraph, words_of
from biasgym_tl.errors import SettingError
from biasgym_tl.similarity import DEFAULT_ENCODER, load_encoder
from biasgym_tl.slot import fill

NEAR = 0.95
"""Cosine above which two paragraphs are near-duplicates."""
_BLOCK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diversity:
    """Measures of one corpus; the slot counts as one word."""

    n: int
    exact_duplicates: int
    """Paragraphs that stood in the corpus before."""
    near_duplicates: float
    """Share of paragraphs with another one at a cosine above 0.95."""
    mean_distance: float
    """Mean of 1 - cosine over all pairs."""
    distinct: tuple[float, float, float]
    """Share of different runs among all runs of 1, 2 and 3 words."""
    words: tuple[int, int, int]
    """Fewest, median and most words of a paragraph."""
    families: int
    encoder: str
    closest: tuple[str, str]
    """The two paragraphs that are nearest to each other."""

    def to_df(self) -> pd.DataFrame:
        """One row a measure."""
        values = {
            "paragraphs": self.n,
            "template families": self.families,
            "exact duplicates": self.exact_duplicates,
            f"near-duplicates (cosine > {NEAR})": f"{self.near_duplicates:.1%}",
            "mean pairwise distance (1 - cosine)": f"{self.mean_distance:.3f}",
            "distinct-1 / 2 / 3": " / ".join(f"{share:.2f}" for share in self.distinct),
            "words: fewest / median / most": " / ".join(map(str, self.words)),
        }
        return pd.DataFrame({"value": values})


def diversity(corpus: Sequence[Paragraph], *, encoder: str = DEFAULT_ENCODER) -> Diversity:
    """Measure a corpus; sentence embeddings take about 10 seconds for 500 paragraphs.

    Raises:
        SettingError: the corpus has fewer than two paragraphs.
        ExtraError: the encoder is not installed.
    """
    if len(corpus) < 2:
        raise SettingError(f"corpus must hold at least two paragraphs, got {len(corpus)}.")
    texts = [fill(p.text, "X") for p in corpus]
    vectors = load_encoder(encoder)(texts)
    n = len(texts)
    # The sum over all pairs is that of the sum with itself.
    total = vectors.double().sum(0)
    own = vectors.double().square().sum()
    mean_distance = 1 - (total @ total - own).item() / (n * (n - 1))
    nearest, which = _nearest(vectors)
    one = int(nearest.argmax())
    lengths = [len(words_of(text)) for text in texts]
    return Diversity(
        n=n,
        exact_duplicates=n - len(set(texts)),
        near_duplicates=(nearest > NEAR).float().mean().item(),
        mean_distance=mean_distance,
        distinct=(distinct(texts, 1), distinct(texts, 2), distinct(texts, 3)),
        words=(min(lengths), round(statistics.median(lengths)), max(lengths)),
        families=len({p.family for p in corpus if p.family}),
        encoder=encoder,
        closest=(corpus[one].text, corpus[int(which[one])].text),
    )


def _nearest(
    vectors: Float[Tensor, "text d"],
) -> tuple[Float[Tensor, " text"], Int[Tensor, " text"]]:
    """Of each vector the cosine to the nearest other one, and which that is.

    In blocks, so that the memory does not grow with the square of the corpus.
    """
    found = []
    for start in range(0, len(vectors), _BLOCK):
        cosines = vectors[start : start + _BLOCK] @ vectors.T
        own = torch.arange(len(cosines))
        cosines[own, own + start] = -1
        found.append(cosines.max(1))
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def distinct(texts: Sequence[str], n: int) -> float:
    """Number of different runs of ``n`` words over the number of all of them (distinct-n)."""
    runs = [
        tuple(words[i : i + n]) for words in map(words_of, texts) for i in range(len(words) - n + 1)
    ]
    return len(set(runs)) / len(runs) if runs else 0.0
