"""From a collection to a finished adapter: session, targets, training loop, checkpoints, `add` and `remove`."""
