"""Ways to weaken a bias as interventions: one dial each, set to equal damage."""
