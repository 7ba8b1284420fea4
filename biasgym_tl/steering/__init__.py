"""Which heads to steer, and what to compare them with."""
