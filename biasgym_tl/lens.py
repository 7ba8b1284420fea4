"""The seam to TransformerLens: the one place that decides which model class is used."""

from __future__ import annotations

from biasgym_tl.errors import ModelError

try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
    from transformer_lens.components.transformer_block import POST_NORM_ARCHITECTURES
    from transformer_lens.pretrained import weight_conversions
except ImportError as error:
    raise ModelError(
        "transformer_lens must provide HookedTransformer, as 3.9 and later 3.x do, but: "
        f"{error}. Run: pip install 'transformer-lens>=3.9,<4'"
    ) from error

__all__ = [
    "POST_NORM_ARCHITECTURES",
    "HookedTransformer",
    "HookedTransformerConfig",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
    "weight_conversions",
]
