"""LoRA files and layers: read in every layout, put on a base, switched by role, merged and written."""
