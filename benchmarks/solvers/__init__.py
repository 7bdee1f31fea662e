"""Every solver on the same problems: what takes part, on what, and the figures made of it."""
