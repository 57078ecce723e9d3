"""A vision-language model behind an OpenAI-compatible chat API, as vLLM, SGLang and Ollama serve it.

Images and a text go in, the model's text comes out: `Vlm.ask`. It knows nothing of what is asked, keeps count
of the tokens, and turns every fault of the endpoint into a `UserError`.
"""

import base64
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from collectionlora.config import VlmSettings
from collectionlora.pictures.photos import Photo
from collectionlora.system.errors import UserError

QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
HINTS = {
    400: "give a {model_option} that reads images",
    401: "name the variable that holds the key: --api-key-env NAME",
    403: "name the variable that holds the key: --api-key-env NAME",
    404: "check {model_option}, and that the address after {option} ends in /v1",
    429: "wait, then run the same command again",
}


@dataclass(frozen=True)
class Endpoint:
    """Which model to ask, and where; the key is only named, by its environment variable.

    `option` is the option of the command line that gives the address; faults name it.

    Raises:
        UserError: no usable address; it is not repeated, as it may hold a password.
    """

    url: str
    model: str
    api_key_env: str | None = None
    option: str = "--vlm"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not re.fullmatch(r"[^\s\x00-\x1f]+", self.url):
            raise UserError("", self.option, "is no http address", "write it as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query:
            hint = "put the key into an environment variable and name it: --api-key-env NAME"
            raise UserError("", self.option, "the address carries a password or a query", hint)

    @classmethod
    def of(
        cls, url: str | None, model: str | None, api_key_env: str | None, option: str = "--vlm"
    ) -> "Endpoint | None":
        """The endpoint that a command line names, None if it names none.

        Raises:
            UserError: only a part of it is named.
        """
        if url is None and model is None and api_key_env is None:
            return None
        if not url:
            raise UserError("", option, "is missing", "give the endpoint's address")
        if not model:
            hint = "give the model's name as the server lists it"
            raise UserError("", model_option(option), "is missing", hint)
        return cls(url, model, api_key_env, option)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def key(self) -> str | None:
        """The key from its variable, None if no variable is named.

        Raises:
            UserError: the variable is not set, or holds what no header can carry.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError("", self.api_key_env, "the variable is not set", "export it with the key")
        if not (key.isascii() and key.isprintable()):
            raise UserError("", self.api_key_env, "the variable holds no key", "export it with the key")
        return key


def model_option(option: str) -> str:
    """The option that names the model of the endpoint that `option` gives."""
    return "--model" if option == "--vlm" else f"{option}-model"


@dataclass(frozen=True)
class Answer:
    """What the model wrote, untouched; the tokens of the call; whether the text was cut off at its limit."""

    text: str
    tokens: int
    cut: bool


class Message(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    message: Message
    finish_reason: str | None = None


class Usage(BaseModel):
    total_tokens: int = Field(ge=0)


class Reply(BaseModel):
    """The part of a chat completion that is read: servers differ in the rest."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


class Vlm:
    """An endpoint with its client and its account; `calls` and `tokens` are those of this object's life."""

    def __init__(self, endpoint: Endpoint, settings: VlmSettings):
        import openai  # takes a second: only who asks pays for it

        self.endpoint, self.settings = endpoint, settings
        self.calls = self.tokens = 0
        self._most_tokens = 0  # of one call so far
        self._key = endpoint.key()
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=self._key or "none",  # the client insists on one
            timeout=settings.timeout,
            max_retries=settings.max_retries,
        )

    def ask(self, images: Sequence[Photo], text: str) -> Answer:
        """The model's answer to a text about images, which are sent in order before it.

        429, 5xx, timeouts and lost connections are tried again, with growing pauses or the server's own.

        Raises:
            UserError: the endpoint fails, or the call might exceed `vlm.max_tokens_total`.
        """
        import openai

        small = [shrink(image, self.settings.image_side) for image in images]
        expected = self._reserve(small, text)
        images_sent = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in small]
        message: Any = {"role": "user", "content": [*images_sent, {"type": "text", "text": text}]}
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.endpoint.model,
                messages=[message],
                temperature=0,
                max_tokens=self.settings.max_answer_tokens,
            )
            reply = Reply.model_validate_json(raw.text)
        except openai.APIError as error:
            raise self._explain(error) from None
        except ValidationError:
            option = self.endpoint.option
            hint = f"check that the address after {option} is that of an OpenAI-compatible API, ending in /v1"
            raise self._fault("answers with something else than a chat completion", hint) from None
        tokens = reply.usage.total_tokens if reply.usage else expected
        self.calls, self.tokens = self.calls + 1, self.tokens + tokens
        self._most_tokens = max(self._most_tokens, tokens)
        choice = reply.choices[0]
        return Answer(choice.message.content or "", tokens, choice.finish_reason == "length")

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

    def _explain(self, error: Any) -> UserError:
        import openai

        option = self.endpoint.option
        if isinstance(error, openai.APITimeoutError):
            tries, seconds = self.settings.max_retries + 1, self.settings.timeout
            hint = "raise it: --set vlm.timeout=SECONDS, or look at the server"
            return self._fault(f"no answer within {seconds:g} seconds, {tries} times", hint)
        if isinstance(error, openai.APIStatusError):
            hint = HINTS.get(error.status_code, "look at the server, then run the same command again")
            hint = hint.format(option=option, model_option=model_option(option))
            return self._fault(f"answers {error.status_code} {self._quote(error.response.text)}", hint)
        return self._fault("cannot be reached", f"start the server, or fix the address after {option}")

    def _quote(self, text: str) -> str:
        """The start of a server's words on one line, without the key that it may repeat."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join(text.split())
        return "".join(letter for letter in line if letter.isprintable())[:200]

    def _fault(self, message: str, hint: str) -> UserError:
        return UserError(self.endpoint.host, self.endpoint.model, message, hint)


def shrink(photo: Photo, side: int) -> Image.Image:
    """A photo whose longest side is at most `side`."""
    image = Image.fromarray(photo)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def data_url(image: Image.Image) -> str:
    """An image as a JPEG data URL; a file's own metadata is not in it."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def plain(text: str) -> str:
    """A model's text without its thoughts, its code fence and its quotation marks."""
    # Some servers send the closing tag alone; thoughts that never closed have no answer after them.
    text = text.rpartition("</think>")[2].partition("<think>")[0].strip()
    if fence := re.fullmatch(r"```(?:\w*\n)?(.*?)```", text, re.DOTALL):
        text = fence[1].strip()
    inner = text[1:-1].strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(inner):
        return inner
    return text
