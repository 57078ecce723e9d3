"""The manifest as text: written for a new collection, edited by `add` and `remove`."""
