"""Click a head and see what it does: a widget for Jupyter, and a page without a kernel."""
