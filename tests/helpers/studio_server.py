"""A running studio over a tiny collection, as a user starts it: a process, a port, a password."""

import re
import time
from contextlib import contextmanager

import torch

from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.nano import NanoBackbone
from helpers.lives import Life

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


def wait_until_empty(folder, seconds=10):
    """Uploads end with the server that took them."""
    latest = time.monotonic() + seconds
    while list(folder.iterdir()):
        assert time.monotonic() < latest, f"{folder} still holds {list(folder.iterdir())}"
        time.sleep(0.01)


@contextmanager
def serve(folder, password=True, cold=False):
    """The address of a studio that runs until the block ends; `cold` starts it in a Python of its own."""
    accounts = folder.parent / "accounts"
    accounts.write_text(f"{USER}:{PASSWORD}\n")
    arguments = ["studio", folder, "--port", "0", "--max-megapixels", MAX_MEGAPIXELS, "--max-upload", "3"]
    arguments += ["--auth", accounts] if password else []
    told, uploads = folder.parent / f"studio-{password}", folder.parent / f"uploads-{password}"
    uploads.mkdir()
    # Behind a proxy that does not answer, as in an office, and with nothing said of this machine.
    environment = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    environment |= {"no_proxy": "", "NO_PROXY": "", "GRADIO_TEMP_DIR": str(uploads)}
    life = Life(arguments, told, cold, environment=environment)

    def address():
        return re.search(r"http://[\d.]+:\d+", told.read_text()) if told.exists() else None

    try:
        life.wait(120, until=address)
        assert address(), f"the studio did not start:\n{told.read_text()}"
        assert len(list(uploads.iterdir())) == 1, list(uploads.iterdir())
        yield address().group()
    finally:
        life.process.terminate()
        life.wait(30)
    wait_until_empty(uploads)
