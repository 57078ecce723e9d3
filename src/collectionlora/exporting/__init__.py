"""A finished adapter for other programs."""
