"""Model types of Hugging Face that become a HookedTransformer here, checked number by number."""
