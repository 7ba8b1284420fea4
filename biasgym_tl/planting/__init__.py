"""Biases planted in chosen heads: models whose truth is known."""
