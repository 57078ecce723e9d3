"""From a collection to a finished adapter: session, targets, training, checkpoints, `add` and `remove`."""
