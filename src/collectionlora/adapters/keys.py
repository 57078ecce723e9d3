"""Names of tensors in LoRA files: which module of the base, which part of its adapter, or why not.

Formats by their prefix: PEFT, diffusers, ComfyUI and its kin (`diffusion_model.`), DiffSynth (`pipe.dit.`),
kohya (`lora_unet_`), LyCORIS (`lycoris_`), OneTrainer (`lora_transformer_`), and bare names. Several prefixes
may follow each other, and the wrappers of torch and accelerate may stand anywhere. kohya, LyCORIS and
OneTrainer write dots as underscores, which is ambiguous (`to_q` or `to.q`): the base's real names decide.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from collectionlora.system.errors import UserError

DOTTED = {
    "base_model.model.": "peft",
    "transformer.": "diffusers",
    "model.diffusion_model.": "comfyui",
    "diffusion_model.": "comfyui",
    "pipe.dit.": "diffsynth",
    "dit.": "diffsynth",
}
WRAPPERS = re.compile(
    r"(?:^module|(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module))\."
)
UNDERSCORED = {"lora_unet_": "kohya", "lycoris_": "lycoris", "lora_transformer_": "onetrainer"}

KEY = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora_mid|lora\.down|lora\.up|alpha|dora_scale|"
    r"lora_magnitude_vector|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff)(?:\.default|(?:\.[\w-]+)?\.weight)?"
)
SAME = {"lora_A": "down", "lora_down": "down", "lora.down": "down"}
SAME |= {"lora_B": "up", "lora_up": "up", "lora.up": "up", "lora_mid": "mid"}

TEXT_ENCODER = r"(lora_te\d?_|text_encoder|text_model|te\d?\.|conditioner\.).*"
WITHOUT = "write without_text_encoder: true into the effect's entry in collection.yaml, or train without it"
REFUSED = (
    (TEXT_ENCODER, "trains the text encoder, which stays as it is here", WITHOUT),
    (
        r".*\.(diff_b|w_norm|b_norm|set_weight|reshape_weight|bias)",
        "replaces a weight, a bias or a norm, which no LoRA can hold",
        "train the LoRA again without bias and norm training",
    ),
    (
        r".*\.(oft_.*|boft_.*|on_input|ia3_l|[ab][12]\.weight|.*vera_.*|hra_.*)",
        "belongs to an adapter kind that is not read (OFT, BOFT, GLoRA, (IA)3, VeRA)",
        "train a LoRA, LoHa or LoKr in its place",
    ),
)


def is_of_text_encoder(key: str) -> bool:
    """Whether a tensor changes the text encoder and not the transformer."""
    return re.fullmatch(TEXT_ENCODER, re.sub(WRAPPERS, "", key)) is not None


def split_key(path: Path, key: str) -> tuple[str, str]:
    """A tensor's key to its module as it is spelled there, and its part: "down", "up", "alpha", ...

    Raises:
        UserError: the key is of a kind that is refused, or of no known kind.
    """
    unwrapped = re.sub(WRAPPERS, "", key)
    for pattern, message, hint in REFUSED:
        if re.fullmatch(pattern, unwrapped):
            raise UserError(path, key, message, hint)
    found = re.fullmatch(KEY, unwrapped)
    if not found:
        hint = "see docs/lora-files.md for what is read"
        raise UserError(path, key, "is not a LoRA weight of a known format", hint)
    return found["module"], SAME.get(found["part"], found["part"])


class ModuleNames:
    """Resolves the spelling of a file to the modules of a base; without a base, names stand as spelled."""

    def __init__(self, names: Collection[str] | None):
        self.names = names
        self.underscored: dict[str, list[str]] = defaultdict(list)
        for name in names or ():
            self.underscored[name.replace(".", "_")].append(name)

    def resolve(self, path: Path, spelled: str) -> tuple[str, str]:
        """The format and the base's module that a spelling means.

        Raises:
            UserError: no module of the base, or more than one, has this name.
        """
        if self.names is not None and spelled in self.names:
            return "bare", spelled
        for prefix, kind in UNDERSCORED.items():
            if spelled.startswith(prefix):
                return kind, self._from_underscores(path, spelled, spelled.removeprefix(prefix))
        kind, name = self._without_prefixes(spelled)
        return kind, self._known(path, spelled, name)

    def _without_prefixes(self, spelled: str) -> tuple[str, str]:
        """The first prefix's format, and the name behind all prefixes, or behind as many as make it known."""
        kinds, name = ["bare"], spelled
        while self.names is None or name not in self.names:
            prefix = next((prefix for prefix in DOTTED if name.startswith(prefix)), None)
            if prefix is None:
                break
            kinds.append(DOTTED[prefix])
            name = name.removeprefix(prefix)
        return kinds[min(1, len(kinds) - 1)], name

    def _from_underscores(self, path: Path, spelled: str, name: str) -> str:
        if self.names is None:
            message = "has a name with underscores for dots, which only its base can resolve"
            raise UserError(path, spelled, message, "put it into a collection of that base")
        candidates = self.underscored.get(name, [])
        if len(candidates) > 1:
            message = f"could be {' or '.join(sorted(candidates))}"
            raise UserError(path, spelled, message, "save it with dots in the names of its modules")
        return candidates[0] if candidates else self._unknown(path, spelled, name)

    def _known(self, path: Path, spelled: str, name: str) -> str:
        known = self.names is None or name in self.names
        return name if known else self._unknown(path, spelled, name)

    def _unknown(self, path: Path, spelled: str, name: str) -> str:
        nearest = difflib.get_close_matches(name, self.names or (), n=1, cutoff=0.6)
        message = "is not a module that takes a LoRA in this base"
        message += f" (the nearest is {nearest[0]})" if nearest else ""
        raise UserError(path, spelled, message, "give a LoRA of this base, trained on these modules alone")
