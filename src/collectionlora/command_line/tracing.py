"""Where the value of each setting comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from collectionlora.config import Section, Settings, resolve


@dataclass(frozen=True)
class ResolvedSetting:
    """One setting as a run would use it: its dotted name, value, the layer it comes from, what it means."""

    name: str
    value: Any
    layer: str
    description: str | None


DEFAULT_LAYER = "default"


def trace_settings(layers: Mapping[str, Mapping[str, Any]]) -> list[ResolvedSetting]:
    """Every setting of named layers, later ones over earlier ones, with the layer that decides it.

    Raises:
        SettingsError: see `resolve`.
    """
    values = resolve(*layers.values()).model_dump(mode="json")
    traced = []
    for section, section_field in Settings.model_fields.items():
        fields = cast(type[Section], section_field.annotation).model_fields
        for name, field in fields.items():
            deciding = [layer for layer, given in layers.items() if name in given.get(section, {})]
            layer = deciding[-1] if deciding else DEFAULT_LAYER
            traced.append(
                ResolvedSetting(f"{section}.{name}", values[section][name], layer, field.description)
            )
    return traced
