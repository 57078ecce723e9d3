"""A running studio over a tiny collection, as a user starts it: its own process, its own port, a password."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import torch

from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.nano import NanoBackbone

USER, PASSWORD = "ada", "lovelace:1"  # pragma: allowlist secret
EFFECTS = {
    "green": "<green_bodogi> tint the photo green",
    "warm": "<warm_nuvaka> make the photo warmer",
    "negative": "<negative_tulipo> invert the colours",
}
MANY_STEPS = 100  # slow enough to be cancelled
MAX_MEGAPIXELS = 2
REPORT = "<!doctype html><title>r</title><h1>Report of the tests</h1><script>document.title='ran'</script>"


def write_collection(folder, steps=1):
    """A folder with a report and an adapter that is little more than the base; its previews take `steps`."""
    backbone = NanoBackbone.load()
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 4})
    generator = torch.Generator().manual_seed(3)
    for parameter in roles.parameters(STUDENT):
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    recipe = Recipe(base="nano", steps=steps, shift=3.0, resolution=64, effects=EFFECTS, version="0")
    write_adapter(folder / "collection.safetensors", roles.weights(STUDENT), recipe)
    (folder / "bench").mkdir()
    (folder / "bench" / "report.html").write_text(REPORT)
    return folder


@contextmanager
def serve(folder, password=True):
    """The address of a studio that runs until the block ends."""
    accounts = folder.parent / "accounts"
    accounts.write_text(f"{USER}:{PASSWORD}\n")
    command = [
        sys.executable,
        "-c",
        "from collectionlora.command_line.verbs import main; main()",
        "studio",
        str(folder),
    ]
    command += ["--port", "0", "--max-megapixels", str(MAX_MEGAPIXELS)]
    command += ["--max-upload", "3", *(["--auth", str(accounts)] if password else [])]
    # Behind a proxy that does not answer, as in an office, and with nothing said of this machine.
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    environment |= {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(folder.parent / "gradio")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://[\d.]+:\d+", line):
                yield found.group()
                break
        else:
            raise AssertionError("the studio did not start:\n" + "".join(lines))
    finally:
        process.terminate()
        process.communicate(timeout=30)
