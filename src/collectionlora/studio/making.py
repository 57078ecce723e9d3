"""From an order to its pictures, with a line for the visitor on how far they are."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from collectionlora.pictures.photos import Photo, to_photos
from collectionlora.studio.batching import Cancelled, Job, Steps
from collectionlora.studio.pictures import Studio
from collectionlora.studio.stamps import Settings
from collectionlora.studio.words import describe_seconds


@dataclass(frozen=True)
class Order:
    """Pictures of one photo that are asked for together.

    The settings of `wanted` have as many passes, the same steps, and the same size. Reference images are
    given to the passes in order, each takes as many as its effects were taught with.
    """

    photo: Photo
    wanted: Sequence[Settings]
    references: Sequence[Photo] = ()


class Clock:
    """How long a work will still take."""

    def __init__(self) -> None:
        self.first = 0, 0.0

    def tell(self, done: int, total: int) -> str:
        """The time left after `done` of `total` steps, for the end of a line; empty until two are done."""
        if self.first[0] == 0:
            self.first = done, time.monotonic()
        steps, seconds = done - self.first[0], time.monotonic() - self.first[1]
        if steps <= 0 or done >= total:
            return ""
        return f", {describe_seconds(seconds / steps * (total - done))} left"


class Maker:
    """Makes what visitors order; it holds the jobs of each for `cancel`, orders apart from previews."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.running: dict[str, list[Job]] = {}
        self.previews: dict[str, list[Job]] = {}

    def make(self, order: Order, visitor: str) -> Iterator[tuple[str, list[Photo]]]:
        """Lines on how far it is, the last one with the pictures at working size; none if it was cancelled.

        Raises:
            UserError: see `Studio.submit`.
        """
        steps, size = order.wanted[0].steps, order.wanted[0].size
        seeds = [settings.seed for settings in order.wanted]
        strengths = [settings.strength for settings in order.wanted]
        images = [self.studio.editor.fit(order.photo, size)] * len(order.wanted)
        given, count = list(order.references), len(order.wanted[0].passes)
        passes = [settings.passes for settings in order.wanted]
        for number, effects in enumerate(zip(*passes, strict=True), 1):
            taught = sum(self.studio.recipe.references.get(name, 0) for name in effects[0])
            taken = given if number == count else given[:taught]
            given = given[len(taken) :]
            jobs = self.studio.submit(images, effects, seeds, steps, strengths, taken)
            prefix = f"effect {number} of {count}: " if count > 1 else ""
            try:
                for line in self._follow(jobs, visitor):
                    yield prefix + line, []
            except Cancelled:
                yield "cancelled", []
                return
            images = [job.picture() for job in jobs]
        yield "done", [to_photos(image)[0] for image in images]

    def _follow(self, jobs: Sequence[Job], visitor: str) -> Iterator[str]:
        """How far jobs of one call are; they are taken back when the visitor is gone."""
        mine, most = self.running.setdefault(visitor, []), self.studio.batcher.most
        mine.extend(jobs)
        clock, batches = Clock(), -(-len(jobs) // most)
        try:
            for index, job in enumerate(jobs):
                for news in job.news():
                    if isinstance(news, Steps):
                        before = news.total * (index // most)  # those of one batch are done together
                        left = clock.tell(before + news.done, news.total * batches)
                        yield f"picture {index + 1} of {len(jobs)}, step {news.done} of {news.total}{left}"
                    elif index == 0:
                        yield describe_turn(news.ahead)
        finally:
            for job in jobs:
                job.cancel()
                mine.remove(job)

    def is_busy(self, visitor: str) -> bool:
        """Whether a visitor waits for something."""
        return bool(self.running.get(visitor))

    def cancel(self, visitor: str) -> None:
        """Take back all that a visitor waits for."""
        for job in [*self.running.get(visitor, []), *self.previews.get(visitor, [])]:
            job.cancel()

    def preview(self, photo: Photo | None, visitor: str) -> list[Photo] | None:
        """A visitor's photo under each effect that needs it alone; None if another photo took its place.

        The previews of an earlier photo are taken back.
        """
        for job in self.previews.pop(visitor, []):
            job.cancel()
        if photo is None:
            return None
        jobs = self.previews[visitor] = self.studio.submit_previews(photo)
        try:
            return [to_photos(job.picture())[0] for job in jobs]
        except Cancelled:
            return None
        finally:
            if self.previews.get(visitor) is jobs:
                del self.previews[visitor]


def describe_turn(ahead: int) -> str:
    """How many pictures are made before this one."""
    if ahead <= 0:
        return "waiting for its turn: next"
    return f"waiting for its turn: {ahead} picture{'s' if ahead > 1 else ''} before it"
