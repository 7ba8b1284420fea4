"""How strongly a text states a stereotype: a judge over an API, a local one, their agreement."""
