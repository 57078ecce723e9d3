"""Faults that the user can mend."""

from pathlib import Path


class UserError(ValueError):
    """Bad input: the file, the field in it, what is wrong, and how to mend it; printed as one line."""

    def __init__(self, file: Path | str, field: str, message: str, mend: str):
        self.file, self.field, self.message, self.mend = str(file), field, message, mend
        place = ": ".join(part for part in (self.file, field) if part)
        super().__init__(f"{place}: {message}; {mend}")

    def as_dict(self) -> dict[str, str]:
        """The problem as `check --json` lists it."""
        return {"file": self.file, "field": self.field, "message": self.message, "mend": self.mend}
