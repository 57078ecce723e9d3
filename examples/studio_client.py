"""Every effect of a running studio on one photo, asked for at the same time: they run as one batch.

collectionlora studio COLLECTION                         in another terminal
python examples/studio_client.py http://127.0.0.1:7860 PHOTO OUT [USER PASSWORD]
"""

import shutil
import sys
from pathlib import Path

from gradio_client import Client, handle_file

address, photo, out, *account = sys.argv[1:]
Path(out).mkdir(parents=True, exist_ok=True)
studio = Client(address, auth=(account[0], account[1]) if account else None, verbose=False)
effects = studio.predict(api_name="/effects")
steps, seed, strength = 4, 0, 1.0
jobs = {
    effect: studio.submit(handle_file(photo), effect, "nothing", steps, seed, strength, api_name="/edit")
    for effect in effects
}
for effect, job in jobs.items():
    (_before, after), _status = job.result()
    print(shutil.copy(after, Path(out) / f"{effect}.png"))
