"""`python -m collectionlora`, for launchers that start a module."""

from collectionlora.cli import main

main()
