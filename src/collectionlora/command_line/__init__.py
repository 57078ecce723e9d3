"""The verbs as commands, and what a person sees in the terminal."""
