"""A vision-language model that is asked: images and a text go in, its text comes out.

It knows nothing of what is asked, and keeps count of the tokens. `endpoint.py` asks one behind a server,
`own_encoder.py` the base's own text encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from collectionlora.config import VlmSettings
from collectionlora.pictures.photos import Photo
from collectionlora.system.errors import UserError

CUT_OFF = "was cut off"


@dataclass(frozen=True)
class Answer:
    """What the model wrote, untouched, and the tokens of the call.

    `fault` is why the text is none or not all of it, as the end of "it ..."; empty if the answer is whole.
    """

    text: str
    tokens: int
    fault: str = ""


class Vlm(ABC):
    """A model with its account; `calls` and `tokens` are those of this object's life.

    Attributes:
        name: of the model, for people.
        key: tells its answers from another model's.
        host: where it runs.
        is_base: it is a part of the base, and no independent judge of what the base makes.
    """

    name: str
    key: str
    host: str
    is_base: bool

    def __init__(self, settings: VlmSettings):
        self.settings = settings
        self.calls = self.tokens = 0
        self._most_tokens = 0  # of one call so far

    def ask(self, images: Sequence[Photo], text: str) -> Answer:
        """The model's answer to a text about images, which it sees in order before the text.

        Raises:
            UserError: the model fails, or the call might exceed `vlm.max_tokens_total`.
        """
        small = [shrink(image, self.settings.image_side) for image in images]
        expected = self._reserve(small, text)
        return self._ask(small, text, expected)

    @abstractmethod
    def _ask(self, images: Sequence[Image.Image], text: str, expected: int) -> Answer:
        """The same of images that are small enough; it spends, if not counted, the `expected` tokens."""

    def _spend(self, tokens: int) -> None:
        self.calls, self.tokens = self.calls + 1, self.tokens + tokens
        self._most_tokens = max(self._most_tokens, tokens)

    def _reserve(self, images: Sequence[Image.Image], text: str) -> int:
        """The tokens that a call may take; raises UserError if the account does not hold them."""
        # Common models spend a token on 28 x 28 pixels or on 3 letters and more; one that spends
        # otherwise is known after its first call.
        pixels = sum(image.width * image.height for image in images)
        estimate = pixels // 28**2 + len(text) // 3 + self.settings.max_answer_tokens
        expected, cap = max(estimate, self._most_tokens), self.settings.max_tokens_total
        if self.tokens + expected > cap:
            message = f"{self.tokens} tokens are spent, the next call may take {expected}, the cap is {cap}"
            raise self._fault(message, "raise it: --max-tokens-total N; what is answered is kept")
        return expected

    def _fault(self, message: str, hint: str) -> UserError:
        return UserError(self.host, self.name, message, hint)


def shrink(photo: Photo, side: int) -> Image.Image:
    """A photo whose longest side is at most `side`."""
    image = Image.fromarray(photo)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image
