"""Distil many effect LoRAs and few-step generation into one LoRA (CollectionLoRA, arXiv 2605.25378)."""

__version__ = "0.1.0"
