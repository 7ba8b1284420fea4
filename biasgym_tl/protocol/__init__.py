"""A protocol: what a whole study does, as a file; and the one chain that runs it."""
