"""The result as it grows: a JSON file that is whole after every entry."""

import threading
from pathlib import Path
from typing import Any

from collectionlora.system.files import read_json, write_json

WRITING = threading.Lock()


class Entries:
    """What one part has found, put into the file at once; other parts' entries stay."""

    def __init__(self, path: Path, part: str):
        self.path, self.part = path, part

    def put(self, **values: Any) -> None:
        """Add values to the part's entry; a mapping is added to the mapping of its name."""
        with WRITING:
            found = read_json(self.path) or {}
            entry = found.setdefault(self.part, {})
            for name, value in values.items():
                entry[name] = {**entry.get(name, {}), **value} if isinstance(value, dict) else value
            write_json(self.path, found)
        print(self.part, values, flush=True)

    def read(self) -> dict[str, Any]:
        """The part's entry as it is now."""
        return (read_json(self.path) or {}).get(self.part, {})
