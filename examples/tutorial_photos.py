"""Photos for the tutorial, from photographs that ship with scikit-image and scikit-learn.

python examples/tutorial_photos.py mine                # fills mine/photos/*, writes me.jpg and heldout/
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from collectionlora.pictures.photographs import HELDOUT, TRAIN, load_photograph, pool

PHOTOS = 20  # in each folder
SIDE = 256


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in sorted((folder / "photos").iterdir()):
        for index in range(PHOTOS):
            crop = pool(TRAIN).crop(rng, (SIDE, SIDE))
            Image.fromarray(crop).save(kind / f"{index:02d}.jpg", quality=95)
    Image.fromarray(load_photograph("chelsea")[:300, 80:380]).save("me.jpg", quality=95)
    Path("heldout").mkdir(exist_ok=True)
    for name in HELDOUT:
        Image.fromarray(load_photograph(name)).save(Path("heldout") / f"{name}.jpg", quality=95)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
