"""Public stereotype sets and tests of ability, each a fixed list of items."""
