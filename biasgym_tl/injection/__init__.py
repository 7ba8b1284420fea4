"""BiasInject: one trained embedding row that elicits a stereotype."""
