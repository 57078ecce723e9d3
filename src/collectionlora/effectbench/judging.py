"""A vision-language model as the judge.

ONE answer for each picture gives both figures: VSA is 0 for a bad case and else the identity score, BCR is
the share of bad cases, so that VSA <= 5 (1 - BCR) holds in every mean. Answers are kept as they came beside
the pictures, under the fingerprint of all that was asked with: nothing is asked twice.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, StrictBool, ValidationError

from collectionlora.collection import Collection, Effect
from collectionlora.effectbench.bench import GENERAL, Cases, Pictures
from collectionlora.effectbench.scoring import Measured, Meter
from collectionlora.pictures.photos import Photo
from collectionlora.prompting.answers import plain
from collectionlora.prompting.vlm import Vlm
from collectionlora.system.files import fingerprint, read_models, write_json
from collectionlora.system.progress import Progress

WITH_REFERENCE = """\
You judge one edit of a photo. Images 1 and 2 show what the edit does: a photo, and the same photo after it.
Image 3 is another photo, and image 4 what an editing model made of it."""
ALONE = """\
You judge one edit of a photo. Image 1 is the photo, and image 2 what an editing model made of it."""
QUESTIONS = """\
The edit was asked for with these words: {teacher_prompt!r}
{criteria}Judge the last image:
- bad_case: true if the edit failed: the effect is missing, hardly there or another one, or it is broken.
- identity: is the subject of the photo still the same, apart from what the effect has to change? 5 surely the
  same, 4 the same with small differences, 3 alike, 2 hardly alike, 1 another subject or none.

Answer with one JSON object and nothing else, for example {{"bad_case": false, "identity": 4}}"""
REFUSAL = (
    "\n\nYour last answer was refused: it holds no such JSON object. Answer again, with the object alone."
)
TRIES = 2

ImagePair = tuple[Photo, Photo]


class Verdict(BaseModel):
    """What the judge says of one picture."""

    bad_case: StrictBool
    identity: Annotated[int, Field(ge=1, le=5, strict=True)]

    @property
    def vsa(self) -> float:
        return 0.0 if self.bad_case else float(self.identity)


class Answered(BaseModel):
    """The untouched answers to one request, in order; there is a second if the first was no verdict."""

    model: str
    host: str
    tokens: int
    answers: list[str]

    @property
    def verdict(self) -> Verdict | None:
        return read_verdict(self.answers[-1])


def write_question(effect: Effect, with_reference: bool) -> str:
    """What the judge is asked about one picture of an effect."""
    criteria = f"It succeeds under these criteria: {effect.criteria}\n" if effect.criteria else ""
    questions = QUESTIONS.format(teacher_prompt=effect.teacher_prompt, criteria=criteria)
    return f"{WITH_REFERENCE if with_reference else ALONE}\n{questions}"


def read_verdict(answer: str) -> Verdict | None:
    """The verdict in an answer, None if there is none."""
    found = re.search(r"\{[^{}]*\}", plain(answer))
    try:
        return Verdict.model_validate_json(found[0]) if found else None
    except ValidationError:
        return None


class Judge:
    """Asks about pictures of a collection, and keeps the answers under `bench/pictures`.

    Args:
        references: image pairs by effect; the first one shows the judge what the effect does.
    """

    def __init__(
        self, vlm: Vlm, collection: Collection, cases: Cases, references: Mapping[str, Sequence[ImagePair]]
    ):
        self.vlm, self.collection, self.cases, self.references = vlm, collection, cases, references

    def verdict(self, method: str, effect: str, index: int, made: Photo, turn: int = 1) -> Verdict | None:
        """The verdict on one picture, None if no answer can be used.

        Args:
            turn: 2 asks once more about a picture that was judged.

        Raises:
            UserError: the model fails or the token cap is reached; what is answered is kept.
        """
        images = [*self.references.get(effect, [()])[0], self.cases.photos[index], made]
        text = write_question(self.collection.effect(effect), len(images) == 4)
        seen = (*(p.shape for p in images), *(p.tobytes() for p in images))
        request = fingerprint(self.vlm.key, text, self.vlm.settings.image_side, turn, *seen)
        path = self.collection.folder / "bench" / "pictures" / method / f"{effect}.answers.json"
        read = partial(read_models, path, Answered, "remove the file: its pictures are judged anew")
        if answered := read().get(request):
            return answered.verdict
        answered = self._ask(images, text)
        # Read again: meanwhile another bench may have kept answers there, which were paid for.
        write_json(path, {key: one.model_dump() for key, one in {**read(), request: answered}.items()})
        return answered.verdict

    def _ask(self, images: Sequence[Photo], text: str) -> Answered:
        answers, tokens, hint = list[str](), 0, ""
        for _ in range(TRIES):
            answer = self.vlm.ask(images, text + hint)
            answers, tokens, hint = [*answers, answer.text], tokens + answer.tokens, REFUSAL
            if read_verdict(answer.text):
                break
        return Answered(model=self.vlm.name, host=self.vlm.host, tokens=tokens, answers=answers)

    def meter(self, progress: Progress) -> Meter:
        """`vsa` and `bcr` of every picture, NaN where no answer could be used."""
        done: Counter[str] = Counter()

        def measure(effect: str, made: Mapping[str, Sequence[Photo]]) -> dict[str, Measured]:
            measured = {}
            for method, photos in made.items():
                verdicts = []
                for index, photo in enumerate(photos):
                    verdicts.append(self.verdict(method, effect, index, photo))
                    done[method] += 1
                    spent = {"thousand tokens": self.vlm.tokens / 1000}
                    total = len(photos) * len(self.collection.effects)
                    progress(f"judge {method}", done[method], total, spent)
                vsa = np.array([v.vsa if v else np.nan for v in verdicts])
                bcr = np.array([float(v.bad_case) if v else np.nan for v in verdicts])
                measured[method] = Measured({"vsa": vsa, "bcr": bcr}, {"unjudged": verdicts.count(None)})
            return measured

        return measure

    def repeat(self, pictures: Pictures, num_pictures: int, seed: int) -> dict[str, Any]:
        """Judge a drawn sample of the pictures a second time.

        Returns:
            `pictures` judged twice; `bad_case_agreement`, the share with the same answer;
            `identity_difference`, the mean absolute difference of the scores.
        """
        judged = [
            (m, e, i)
            for m, made in pictures.items()
            for e in made
            if e != GENERAL
            for i in range(len(made[e]))
        ]
        drawn = np.random.default_rng(seed).permutation(len(judged))[:num_pictures]
        pairs = []
        for method, effect, index in (judged[i] for i in sorted(drawn)):
            photo = pictures[method][effect][index]
            once, again = (self.verdict(method, effect, index, photo, turn) for turn in (1, 2))
            if once and again:
                pairs.append((once, again))
        if not pairs:
            return {"pictures": 0}
        return {
            "pictures": len(pairs),
            "bad_case_agreement": float(np.mean([a.bad_case == b.bad_case for a, b in pairs])),
            "identity_difference": float(np.mean([abs(a.identity - b.identity) for a, b in pairs])),
        }

    def facts(self) -> dict[str, Any]:
        """Who judged, and what this run asked for."""
        return {
            "model": self.vlm.name,
            "host": self.vlm.host,
            "independent": not self.vlm.is_base,
            "calls": self.vlm.calls,
            "tokens": self.vlm.tokens,
        }
