"""The slot of a prompt or paragraph."""

SLOT = "{target}"
"""Where the target's name goes."""


def fill(text: str, target: str) -> str:
    """Put ``target`` into every slot of ``text``; other braces are left alone."""
    return text.replace(SLOT, target)
