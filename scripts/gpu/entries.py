"""The result as it grows: gpu.json is whole after every entry."""

from pathlib import Path
from typing import Any

from collectionlora.system.files import read_json, write_json

FILE = "gpu.json"


class Entries:
    """What one part has found, put into `folder/gpu.json` at once; other parts' entries stay."""

    def __init__(self, folder: Path, part: str):
        self.path, self.part = folder / FILE, part

    def put(self, **values: Any) -> None:
        """Add values to the part's entry; a mapping is added to the mapping of its name."""
        found = read_json(self.path) or {}
        entry = found.setdefault(self.part, {})
        for name, value in values.items():
            entry[name] = {**entry.get(name, {}), **value} if isinstance(value, dict) else value
        write_json(self.path, found)
        print(self.part, values, flush=True)

    def read(self) -> dict[str, Any]:
        """The part's entry as it is now."""
        return (read_json(self.path) or {}).get(self.part, {})
