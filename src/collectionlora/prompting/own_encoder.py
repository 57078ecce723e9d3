"""The base's own text encoder as the vision-language model: no server, nothing sent, greedy.

It is loaded while the network is not, and released with the other encoders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone
from collectionlora.backbones.diffusers_model import DiffusersBackbone
from collectionlora.backbones.speaking import find_silence
from collectionlora.cache import base_identity
from collectionlora.config import VlmSettings
from collectionlora.prompting.endpoint import Endpoint, EndpointVlm, model_option
from collectionlora.prompting.vlm import CUT_OFF, Answer, Vlm
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint

WORD = "base"  # in place of an endpoint's address


@dataclass(frozen=True)
class OwnEncoder:
    """The base's text encoder is asked; `option` is the option of the command line that says so."""

    option: str = "--vlm"


class EncoderVlm(Vlm):
    """The text encoder of a base."""

    host, is_base = "this process", True

    def __init__(self, backbone: Backbone, base: str, settings: VlmSettings):
        super().__init__(settings)
        assert isinstance(backbone, DiffusersBackbone)
        self.backbone, self.name = backbone, f"the text encoder of {base}"
        self.key = fingerprint(WORD, base_identity(base) or base, str(backbone.dtype))

    def _ask(self, images: Sequence[Image.Image], text: str, expected: int) -> Answer:
        spoken = self.backbone.speaker.answer(images, text, self.settings.max_answer_tokens)
        self._spend(spoken.tokens)
        return Answer(spoken.text, spoken.tokens, "" if spoken.is_whole else CUT_OFF)


def choose(
    url: str | None, model: str | None, api_key_env: str | None, option: str = "--vlm"
) -> Endpoint | OwnEncoder | None:
    """Which model a command line names: an endpoint's, with `base` the base's own, or none.

    Raises:
        UserError: only a part of an endpoint is named, or a part of one beside `base`.
    """
    if url != WORD:
        return Endpoint.of(url, model, api_key_env, option)
    for name, value in ((model_option(option), model), ("--api-key-env", api_key_env)):
        if value is not None:
            raise UserError("", name, f"does not go with {option} {WORD}", "leave it out")
    return OwnEncoder(option)


def vlm_opener(
    chosen: Endpoint | OwnEncoder | None, base: str, settings: VlmSettings
) -> Callable[[Backbone], Vlm] | None:
    """What makes the model of a base's backbone; all that can be known of it is checked now.

    Raises:
        UserError: no key for the endpoint, or a base whose text encoder cannot see and write.
    """
    if chosen is None:
        return None
    if isinstance(chosen, Endpoint):
        vlm = EndpointVlm(chosen, settings)
        return lambda _: vlm
    if silence := find_silence(family_of(base), base):
        hint = f"name an endpoint: {chosen.option} http://HOST/v1 {model_option(chosen.option)} NAME"
        raise UserError("", chosen.option, f"{base!r} {silence}", hint)
    return lambda backbone: EncoderVlm(backbone, base, settings)
