"""What can be known before a base is loaded: problems, memory, disk and forwards."""

SHARED = ("targets", "distill", "bench", "add")  # several processes share their work, each with its own GPU
