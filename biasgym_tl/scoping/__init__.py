"""BiasScope: which attention heads write the stereotype."""
