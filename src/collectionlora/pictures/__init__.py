"""Photos in and out: reading, sizes, sheets of several, and where results are written."""
