"""What every room stands on: errors, files, processes, progress, the version."""
