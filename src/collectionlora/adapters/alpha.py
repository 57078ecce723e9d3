"""The scale of a module, alpha / rank: from its own tensor, or from the configuration beside the tensors."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from collectionlora.adapters.keys import WITHOUT
from collectionlora.adapters.lycoris import Rebuilt
from collectionlora.system.errors import UserError, quote

DIFFUSERS_HEADER = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
AGAIN = "export or train this LoRA again"
MAX_STATED = 1_000_000  # a rank or an alpha beyond it is no such number
# Initialisations of PEFT that move the base's weights.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def lora_files(path: Path) -> list[Path]:
    """A LoRA file and, where PEFT wrote it, the configuration beside it that states its alphas."""
    config = path.with_name(PEFT_CONFIG)
    return [path, config] if path.name == PEFT_FILE and config.exists() else [path]


@dataclass(frozen=True)
class AlphaHeader:
    """PEFT's configuration of a file: its ranks and alphas.

    diffusers writes it into the header (`transformer.r`, `transformer.lora_alpha`, ...), PEFT into a file
    beside its `adapter_model.safetensors`.
    """

    config: Mapping[str, Any]
    place: str = ""

    @classmethod
    def find(
        cls, path: Path, metadata: Mapping[str, str], without_text_encoder: bool = False
    ) -> "AlphaHeader":
        """The configuration of a file, empty if it has none; what it says of a text encoder may be left out.

        Raises:
            UserError: it is there but cannot be read.
        """
        text, place = metadata.get(DIFFUSERS_HEADER), DIFFUSERS_HEADER
        for config in lora_files(path)[1:] if text is None else []:
            place = PEFT_CONFIG
            try:
                text = config.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(config, "", f"cannot be read ({error})", AGAIN) from None
        if text is None:
            return cls({})
        try:
            stated = {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
        except (ValueError, AttributeError, RecursionError):
            raise UserError(path, place, "is not a JSON object", AGAIN) from None
        for name in [name for name in stated if name.startswith("text_encoder")]:
            if not without_text_encoder:
                raise UserError(path, f"{place}: {name}", "is for a text encoder LoRA", WITHOUT)
            del stated[name]
        start = stated.get("init_lora_weights")
        if isinstance(start, str) and start.lower().replace("-", "_").startswith(CHANGES_BASE):
            message = f"says that {start} moved the base's weights before this LoRA was trained"
            raise UserError(
                path, place, message, "save it with PEFT's path_initial_model_for_weight_conversion"
            )
        return cls(stated, place)

    def scale(self, path: Path, module: str, built: Rebuilt) -> float | None:
        """alpha / rank of one module, alpha / sqrt(rank) for rank-stabilised LoRA; None if nothing is stated.

        Raises:
            UserError: the header contradicts the tensors or lacks its numbers.
        """
        if not self.config:
            return None
        try:
            rank = self._of(module, "r", "rank_pattern")
            alpha = self._of(module, "lora_alpha", "alpha_pattern")
            alpha = self._of(module, "alpha", "alpha_pattern") if alpha is None else alpha
        except (re.error, TypeError, AttributeError, RecursionError) as error:
            raise UserError(path, self.place, f"has invalid patterns ({error})", AGAIN) from None
        numbers = isinstance(rank, int) and isinstance(alpha, int | float)
        if not numbers or not 1 <= rank <= MAX_STATED or not abs(alpha) <= MAX_STATED:
            message = f"states rank {quote(rank)} and alpha {quote(alpha)}"
            raise UserError(path, self.place, message, AGAIN)
        if built.rank and rank != built.rank:
            message = f"states rank {rank} for {module}, the tensors have {built.rank}"
            raise UserError(path, self.place, message, AGAIN)
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _of(self, module: str, name: str, patterns: str) -> Any:
        found = self.config.get(patterns)
        if not found:
            return self.config.get(name)
        from peft.utils.other import get_pattern_key  # which takes seconds; few files have patterns

        return found.get(get_pattern_key(list(found), module), self.config.get(name))


def module_scale(path: Path, module: str, alpha: Tensor | None, built: Rebuilt, header: AlphaHeader) -> float:
    """alpha / rank: from the module's own tensor, else from the header, else 1.

    Raises:
        UserError: alpha is not one number, or tensor and header disagree.
    """
    stated = header.scale(path, module, built)
    if alpha is None:
        return 1.0 if stated is None else stated
    if alpha.numel() != 1:
        raise UserError(path, f"{module}.alpha", f"has shape {list(alpha.shape)}", "it must be one number")
    # LyCORIS ignores alpha where both sides of a Kronecker product are whole: there is no rank to divide by.
    scale = float(alpha) / built.rank if built.rank else 1.0
    if not math.isfinite(scale):
        raise UserError(path, f"{module}.alpha", "holds values that are not finite", AGAIN)
    if stated is not None and abs(scale - stated) > 1e-3 * abs(stated):
        message = f"gives the scale {scale:g}, the header gives {stated:g}"
        raise UserError(path, f"{module}.alpha", message, "keep one of them")
    return scale
