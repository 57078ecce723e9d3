"""A vision-language model behind an OpenAI-compatible chat API, as vLLM, SGLang and Ollama serve it.

Every fault of the endpoint becomes a `UserError`.
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
from collectionlora.prompting.vlm import CUT_OFF, Answer, Vlm
from collectionlora.system.environment import spare_this_machine_the_proxy
from collectionlora.system.errors import UserError

READS_IMAGES = "give a {model_option} that reads images"
HINTS = {
    400: "read what the server says of the request; another {model_option} may take it",
    401: "name the variable that holds the key: --api-key-env NAME",
    403: "name the variable that holds the key: --api-key-env NAME",
    404: "check {model_option}, and that the address after {option} ends in /v1",
    413: "lower it: --set vlm.image_side=512",
    429: "wait, then run the same command again",
}
# What servers say, in whatever status, and what to do; the first that fits.
SAID = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), hint)
    for pattern, hint in (
        (
            r"context.{0,20}(length|window|size)|num_ctx|max_model_len|prompt is too long|input is too long",
            "start the server with a longer context, or lower it: --set vlm.image_side=512",
        ),
        (r"quota|billing|credit|balance", "look at the account of this endpoint: what it may spend is spent"),
        (r"rate.?limit|too many requests|overloaded|capacity", HINTS[429]),
        (r"max_(completion_)?tokens", "give what the model takes: --set vlm.max_answer_tokens=N"),
        (r"temperature|unsupported (parameter|value)", "give another {model_option}, or update the server"),
        (
            r"(at most|maximum|limit|only|too many|more than|multiple).{0,30}image|limit-mm-per-prompt",
            "let the server take four images in one request (vLLM: --limit-mm-per-prompt)",
        ),
        (
            r"image.{0,60}(too (large|big)|exceed|pixels|dimension)|payload|entity too large|body too large",
            HINTS[413],
        ),
        (
            r"model.{0,80}(not (found|exist)|does not exist|not loaded|unknown)|"
            r"(no such|unknown|invalid) model|try pulling",
            HINTS[404],
        ),
        (r"api.?key|unauthori[sz]ed|authentication", HINTS[401]),
        (r"image|vision|multi-?modal|content type", READS_IMAGES),
        (r"loading|warming up|starting", "wait until the server has loaded the model"),
    )
)
FILTERED = re.compile(r"content.?(filter|policy|management)|moderation|safety (system|policy)", re.IGNORECASE)
CUT = ("length", "max_tokens", "model_length")
DECLINED = ("content_filter", "safety", "refusal", "recitation", "prohibited_content", "blocklist")


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
            host = (parts.hostname or "").encode("idna")  # as whoever connects writes it
            usable = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not re.fullmatch(r"[^\s\x00-\x1f]+", self.url):
            raise UserError("", self.option, "is not an http address", "write it as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query:
            hint = "put the key into an environment variable and name it: --api-key-env NAME"
            raise UserError("", self.option, "the address carries a password or a query", hint)
        if parts.path.rstrip("/").endswith("/chat/completions"):
            hint = "leave that part out: it ends in /v1 or the like"
            raise UserError("", self.option, "the address ends in /chat/completions, which is added", hint)

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


class Part(BaseModel):
    type: str = "text"
    text: str | None = None


class Message(BaseModel):
    """A message of text, or of parts; models that think or refuse may say so in fields of their own."""

    content: str | list[Part] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content if part.type in ("text", "output_text"))
        return self.content or ""


class Choice(BaseModel):
    message: Message
    finish_reason: str | None = None


class Usage(BaseModel):
    total_tokens: int | None = Field(None, ge=0)


class Reply(BaseModel):
    """The part of a chat completion that is read: servers differ in the rest."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


def import_openai(option: str) -> Any:
    """The client's package: an extra, and a second to import, so that only who asks pays for it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import openai
    except ImportError as error:
        hint = "install it: pip install 'collectionlora[vlm]'"
        raise UserError("", option, f"needs openai ({error})", hint) from None
    return openai


class EndpointVlm(Vlm):
    """An endpoint with its client."""

    is_base = False

    def __init__(self, endpoint: Endpoint, settings: VlmSettings):
        super().__init__(settings)
        openai = import_openai(endpoint.option)
        self.endpoint, self.host = endpoint, endpoint.host
        self.name = self.key = endpoint.model
        self._secret = endpoint.key()
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": settings.max_answer_tokens}
        spare_this_machine_the_proxy()
        try:
            self._client = openai.OpenAI(
                base_url=endpoint.url,
                api_key=self._secret or "none",  # the client insists on one
                timeout=settings.timeout,
                max_retries=settings.max_retries,
            )
        except (ImportError, ValueError) as error:  # a proxy by SOCKS needs a package, an address can be none
            hint = (
                "correct or unset HTTP_PROXY, HTTPS_PROXY and ALL_PROXY (SOCKS: pip install 'httpx[socks]')"
            )
            raise UserError("environment", "proxy", str(error), hint) from None
        except OSError as error:
            hint = "correct or unset SSL_CERT_FILE and SSL_CERT_DIR"
            raise UserError("environment", "SSL_CERT_FILE", f"cannot be read ({error})", hint) from None

    def _ask(self, images: Sequence[Image.Image], text: str, expected: int) -> Answer:
        """Ask the endpoint.

        429, 5xx, timeouts and lost connections are tried again, with growing pauses or the server's own. A
        model that takes no `max_tokens` or no temperature is asked in its own way.
        """
        import openai

        images_sent = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
        message: Any = {"role": "user", "content": [*images_sent, {"type": "text", "text": text}]}
        try:
            body = self._send(message)
        except openai.APIStatusError as error:
            if error.status_code in (400, 403, 451) and FILTERED.search(error.response.text):
                return Answer("", 0, "was stopped by the server's filter")
            raise self._explain(error) from None
        except openai.APIError as error:
            raise self._explain(error) from None
        try:
            reply = Reply.model_validate_json(body)
        except ValidationError:
            option = self.endpoint.option
            hint = f"check that the address after {option} is that of an OpenAI-compatible API, ending in /v1"
            fault = f"answers with something else than a chat completion: {self._quote(body)}"
            raise self._fault(fault, self._hint(body) or hint) from None
        used = reply.usage.total_tokens if reply.usage else None
        tokens = expected if used is None else used
        self._spend(tokens)
        choice = reply.choices[0]
        return Answer(choice.message.text(), tokens, find_stop(choice))

    def _send(self, message: Any) -> str:
        """The body of the answer to a message; raises openai.APIError."""
        import openai

        create = self._client.chat.completions.with_raw_response.create
        while True:
            try:
                raw = create(model=self.endpoint.model, messages=[message], **self._options)
                return str(raw.text)
            except openai.BadRequestError as error:
                if not self._adapt(error.response.text):
                    raise

    def _adapt(self, words: str) -> bool:
        """Leave out or rename what a model says that it does not take; whether anything was changed."""
        if "max_completion_tokens" in words and "max_tokens" in self._options:
            self._options["max_completion_tokens"] = self._options.pop("max_tokens")
            return True
        return "temperature" in words and self._options.pop("temperature", None) is not None

    def _explain(self, error: Any) -> UserError:
        import openai

        option = self.endpoint.option
        if isinstance(error, openai.APITimeoutError):
            tries, seconds = self.settings.max_retries + 1, self.settings.timeout
            hint = "raise it: --set vlm.timeout=SECONDS, or look at the server"
            return self._fault(f"no answer within {seconds:g} seconds, {tries} times", hint)
        if isinstance(error, openai.APIStatusError):
            words, again = error.response.text, "look at the server, then run the same command again"
            hint = self._hint(words) or HINTS.get(error.status_code, again)
            hint = hint.format(option=option, model_option=model_option(option))
            return self._fault(f"answers {error.status_code} {self._quote(words)}", hint)
        reason = self._quote(str(error.__cause__ or error))
        hint = f"start the server, or fix the address after {option}"
        if "CERTIFICATE" in reason:
            hint = "name the file of the server's own certificate in SSL_CERT_FILE"
        return self._fault(f"cannot be reached ({reason})", hint)

    def _hint(self, words: str) -> str:
        """What to do about a server's words; empty if they are of no known kind."""
        option = self.endpoint.option
        found = (hint for pattern, hint in SAID if pattern.search(words))
        return next(found, "").format(option=option, model_option=model_option(option))

    def _quote(self, text: str) -> str:
        """The start of a server's words on one line, without HTML and the key that it may repeat."""
        if self._secret:
            text = text.replace(self._secret, "***")
        text = re.sub(r"<(style|script).*?</\1>|<[^<>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
        line = " ".join(text.split())
        return "".join(letter for letter in line if letter.isprintable())[:200]


def find_stop(choice: Choice) -> str:
    """Why an answer is none or not whole, as the end of "it ..."; empty if it is."""
    message, reason = choice.message, (choice.finish_reason or "").lower()
    if reason in CUT:
        return CUT_OFF
    if reason in DECLINED:
        return "was stopped by the server's filter"
    if message.refusal:
        return "declines"
    if message.text():
        return ""
    if message.tool_calls:
        return "is a call of a tool, without text"
    return "is thoughts alone" if message.reasoning_content or message.reasoning else ""


def data_url(image: Image.Image) -> str:
    """An image as a JPEG data URL; a file's own metadata is not in it."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
