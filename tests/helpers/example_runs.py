"""Runs exported `example.py`s as their users do, with the noise of our own edit; keeps images as floats.

diffusers draws the same normal numbers in another order, and later ones packed; nothing else is replaced.
"""

import json
import os
import subprocess
import sys

import numpy as np
import torch

RUNNER = """
import json, runpy, sys
import numpy as np, torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.flux2 import pipeline_flux2, pipeline_flux2_klein
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21
from diffusers.schedulers import scheduling_flow_match_euler_discrete as scheduling

generator, shapes = torch.Generator(), []

def first_noise(shape, **_):
    shapes.append(shape[-3:])
    return torch.randn(shape[-3:], generator=generator).view(shape)

def later_noise(shape, **_):
    noise = torch.randn(shapes[0], generator=generator)
    patch = round((shape[-1] / len(noise)) ** 0.5)
    return F.pixel_unshuffle(noise[None], patch).flatten(2).transpose(1, 2).view(shape)

def keep(self, image, output_type="pil", **options):
    np.save(sys.argv[3] + ".npy", (image / 2 + 0.5).clamp(0, 1).numpy()[:, :3])
    return plain(self, image, output_type=output_type, **options)

plain, VaeImageProcessor.postprocess = VaeImageProcessor.postprocess, keep
for module in list(sys.modules.values()):
    if module.__name__.startswith("diffusers.pipelines.") and hasattr(module, "randn_tensor"):
        module.randn_tensor = first_noise
scheduling.randn_tensor = later_noise
pipelines = [module for module in sys.modules.values() if hasattr(module, "calculate_dimensions")]
own = {module: dict(vars(module)) for module in pipelines}
for example, photo, effect, out, seed, *references in json.loads(sys.argv[1]):
    for module, attributes in own.items():  # an example has a process to itself
        vars(module).update(attributes)
    generator.manual_seed(int(seed))
    shapes.clear()
    sys.argv = [example, photo, effect, out, seed, *references]
    runpy.run_path(example, run_name="__main__")
assert "collectionlora" not in sys.modules
"""


def run_examples(jobs):
    """The images `[1, 3, H, W]` of examples; each job is a script and its arguments, the third its result."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    jobs = [[str(part) for part in job] for job in jobs]
    run = [sys.executable, "-c", RUNNER, json.dumps(jobs)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = [torch.from_numpy(np.load(f"{job[3]}.npy")) for job in jobs]
    return [image.view(1, *image.shape[-3:]) if image.ndim == 4 else image[:, :, 0] for image in images]
