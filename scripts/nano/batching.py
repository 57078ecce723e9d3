"""What it saves to run requests of different effects as one batch, which one LoRA for all of them allows.

    python scripts/nano/batching.py --collection DIR [--requests 8] [--rounds 5]

The requests go through the studio's own queue, one after the other and then all at once; printed is the best
round of each, in CPU seconds of this process a picture, on one thread.
"""

import argparse
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from collectionlora.editing import Editor
from collectionlora.pictures.photographs import HELDOUT, load_photograph
from collectionlora.studio.batching import Batcher, Request


def seconds(batcher: Batcher, requests: list[Request], at_once: int) -> float:
    """CPU seconds for all requests, `at_once` of them waiting together."""
    began = time.process_time()
    for start in range(0, len(requests), at_once):
        for job in batcher.submit(requests[start : start + at_once]):
            job.picture()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    editor = Editor.load(args.collection)
    image = editor.fit(load_photograph(HELDOUT[0]))
    effects = islice(cycle(editor.recipe.effects), args.requests)
    requests = [
        Request(image, editor.prompt([name]), seed, editor.recipe.steps, 1.0)
        for seed, name in enumerate(effects)
    ]
    alone = None
    for at_once in (n for n in (1, 2, 4, 8, 16) if n <= args.requests):
        batcher = Batcher(editor, at_once)
        best = min(seconds(batcher, requests, at_once) for _ in range(args.rounds)) / args.requests
        alone = alone or best
        print(f"{at_once:2} at once: {best:.3f} s a picture, {alone / best:.2f} times as fast as alone")


if __name__ == "__main__":
    main()
