"""`python -m collectionlora`, for launchers that start a module."""

from collectionlora.command_line.verbs import main

main()
