"""Biases: what is to be elicited, from which texts, about whom."""
