"""The speed bench: the same models in float, by other tools and by this one, timed in turns."""
