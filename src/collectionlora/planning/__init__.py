"""What can be known before a base is loaded: problems, memory, disk and forwards."""
