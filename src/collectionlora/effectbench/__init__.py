"""EffectBench: how well an adapter does what its teachers do, beside its teachers and other methods."""
