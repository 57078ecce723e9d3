"""Requests of many people run as one batch: one LoRA holds every effect, so nothing is swapped between them.

A single thread owns the editor. It takes the oldest request and with it all that wait for the same size and
number of steps, whatever their effects, seeds and strengths. Reference images are shown to a whole batch: a
request that brings some shares it with those of its own call alone.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from traceback import clear_frames

from torch import Tensor, cat

from collectionlora.editing import Editor

LINGER = 0.03  # seconds that a first request waits for others of the same moment


@dataclass(frozen=True)
class Request:
    """One picture to make: `image` `[1, 3, height, width]` in [0, 1], and what the sampler reads with it.

    `references` are the images shown beside it, each like `image`.
    """

    image: Tensor
    prompt: str
    seed: int
    steps: int
    strength: float
    references: tuple[Tensor, ...] = ()

    @property
    def kind(self) -> tuple[int, ...]:
        """What requests of one batch share; references are the same if they are the same objects."""
        return (self.steps, *self.image.shape, *map(id, self.references))


@dataclass(frozen=True)
class Turn:
    """A request's place in the queue: so many pictures are made before it."""

    ahead: int


@dataclass(frozen=True)
class Steps:
    """How far a request's batch is: of `total` steps so many are done."""

    done: int
    total: int


class Cancelled(Exception):
    """The request was taken back."""


class Job:
    """A request on its way; its news are its turn and the steps done, then a picture or a fault."""

    def __init__(self, request: Request):
        self.request, self.cancelled = request, False
        self._news: SimpleQueue[Turn | Steps | Tensor | BaseException] = SimpleQueue()
        self._picture: Tensor | None = None

    def cancel(self) -> None:
        """Take the request back; a batch stops between two steps once nobody wants it."""
        self.cancelled = True
        self._news.put(Cancelled())

    def tell(self, news: Turn | Steps | Tensor | BaseException) -> None:
        self._news.put(news)

    def news(self) -> Iterator[Turn | Steps]:
        """Its turn each time that this changes, and the steps that are done, until the picture is there.

        Raises:
            Cancelled: by `cancel`.
            Exception: what the editor raised.
        """
        while self._picture is None:
            news = self._news.get()
            if isinstance(news, BaseException):
                raise news
            if isinstance(news, Tensor):
                self._picture = news
            else:
                yield news

    def steps(self) -> Iterator[int]:
        """The number of steps done, each time it grows; raises as `news` does."""
        return (news.done for news in self.news() if isinstance(news, Steps))

    def picture(self) -> Tensor:
        """The image in [0, 1], `[1, 3, height, width]`; waits for it."""
        for _ in self.news():
            pass
        assert self._picture is not None
        return self._picture


class Batcher:
    """The thread that runs requests, up to `most` at once."""

    def __init__(self, editor: Editor, most: int):
        self.editor, self.most = editor, most
        self._waiting: deque[Job] = deque()
        self._sampled = 0  # pictures being made now
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="batcher", daemon=True).start()

    def submit(self, requests: Sequence[Request]) -> list[Job]:
        """Queue requests; those of one call run together as far as they fit into one batch."""
        jobs = [Job(request) for request in requests]
        with self._changed:
            self._waiting.extend(jobs)
            self._tell_turns()
            self._changed.notify()
        return jobs

    def _take(self) -> list[Job]:
        """Wait for a request; it, and those like it that wait too."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            self._changed.wait_for(lambda: len(self._waiting) >= self.most, LINGER)
            kind = self._waiting[0].request.kind
            batch = [job for job in self._waiting if job.request.kind == kind][: self.most]
            self._waiting = deque(job for job in self._waiting if job not in batch)
            self._sampled = len(batch)
            self._tell_turns()
        return [job for job in batch if not job.cancelled]

    def _tell_turns(self) -> None:
        for place, job in enumerate(self._waiting):
            job.tell(Turn(self._sampled + place))

    def _run(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                continue
            try:
                self._sample(batch)
            except Exception as error:  # one that asked must learn of it, the thread must live on
                # Who holds the error holds its frames, and in them what the sampler had on the device.
                clear_frames(error.__traceback__)
                for job in batch:
                    job.tell(error)
            self._sampled = 0

    def _sample(self, batch: list[Job]) -> None:
        requests = [job.request for job in batch]

        def after_step(done: int, total: int) -> None:
            if all(job.cancelled for job in batch):
                raise Cancelled
            for job in batch:
                job.tell(Steps(done, total))

        pictures = self.editor.sample(
            cat([request.image for request in requests]),
            [request.prompt for request in requests],
            [request.seed for request in requests],
            requests[0].steps,
            [request.strength for request in requests],
            after_step,
            requests[0].references,
        )
        for job, picture in zip(batch, pictures.split(1), strict=True):
            job.tell(picture)
