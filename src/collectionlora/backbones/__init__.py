"""The models behind the method; `load_backbone` is the only place that knows their names."""

from typing import Any

from collectionlora.backbones.base import Backbone
from collectionlora.errors import UserError


def load_backbone(base: str) -> Backbone:
    """The backbone that `base:` names.

    Raises:
        UserError: no such base.
    """
    if base == "nano":
        from collectionlora.backbones.nano import NanoBackbone

        return NanoBackbone.load()
    raise UserError("collection.yaml", "base", f"{base!r} is no base that this version loads", "write nano")


def recommended_settings(base: str) -> dict[str, dict[str, Any]]:
    """Settings in which a base differs from the paper's recipe; they lie under the manifest's own."""
    if base == "nano":
        from collectionlora.backbones.nano import RECOMMENDED

        return RECOMMENDED
    return {}
