"""The slot of a prompt or paragraph, and words as they stand in running text."""

SLOT = "{target}"
"""Where the target's name goes."""


def fill(text: str, target: str) -> str:
    """Put ``target`` into every slot of ``text``; other braces are left alone."""
    return text.replace(SLOT, target)


def spaced(text: str) -> str:
    """A word or name as it stands after other words: with one space before it and none after."""
    return f" {text.strip()}"
