"""What steering does: bias, damage and generations, each against its controls."""
