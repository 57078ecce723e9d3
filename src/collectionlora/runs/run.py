"""One way to train in a folder: hold it, write down what the run depends on, take the steps that are left."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectionlora.collection import Collection
from collectionlora.config import Settings
from collectionlora.runs.folder import begin, hold
from collectionlora.runs.inputs import record_inputs
from collectionlora.runs.trainer import Step, StepProgress, train
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import write_json

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Run:
    """A run's folder, held by this launch."""

    folder: Path

    def train(
        self,
        step: Step,
        settings: Settings,
        facts: Mapping[str, Any],
        collection: Collection,
        inputs: Iterable[Path],
        progress: StepProgress,
        resume: bool = True,
        anyway: bool = False,
    ) -> None:
        """Write down settings and inputs, then take the steps that are left.

        Args:
            facts: what the result depends on; where they have changed, the run starts again.
            inputs: the files of the collection that the run reads.
            resume: go on from the newest whole checkpoint.
            anyway: go on although facts have changed, because the user asked for it.

        Raises:
            Interrupted: the user stopped it; its state is saved.
            UserError: see `trainer.train`; processes that would train on other facts.
        """
        different = processes.find_different(facts)
        if different:
            hint = "give all hosts the same command, collection and version"
            raise UserError(self.folder, different, "is not the same in all processes", hint)
        begun = begin(self.folder, facts, resume, anyway) if processes.is_main() else resume
        resume = processes.from_main(begun)
        if processes.is_main():
            write_json(self.folder / SETTINGS, settings.model_dump(mode="json"))
            record_inputs(self.folder, collection, inputs)
        distill = settings.distill
        train(step, self.folder, distill.checkpoint_minutes, resume, progress, distill.keep_checkpoints)


@contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    """Hold a run's folder inside the block.

    Raises:
        UserError: another process holds it.
    """
    with hold(folder):
        yield Run(folder)
