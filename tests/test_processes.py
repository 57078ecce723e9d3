"""Two processes, started as users start them, give what one process gives that averages both gradients."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from two_processes import FADING, toy_run

from collectionlora import processes
from collectionlora.adapters.formats import read_lora, write_lora
from collectionlora.adapters.roles import STUDENT
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.collection import Collection
from collectionlora.data import write_photo
from collectionlora.editing import Editor
from collectionlora.errors import UserError
from collectionlora.session import build_roles, resolve_settings

HERE = Path(__file__).parent


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


class TwoThreads:
    """Two ranks in one process: a thread each, whose gradients meet in place of `average_gradients`."""

    def __init__(self, monkeypatch):
        self.meeting, self.given = threading.Barrier(2, timeout=60), {}
        monkeypatch.setattr(processes, "average_gradients", self.average)

    def average(self, parameters):
        name = threading.current_thread().name
        self.given[name] = [p.grad for p in parameters]
        self.meeting.wait()
        means = []
        for one, other in zip(*(self.given[rank] for rank in sorted(self.given)), strict=True):
            parts = [g for g in (one, other) if g is not None]
            means.append(sum(parts) / 2 if parts else None)
        self.meeting.wait()
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean

    def run(self, runs):
        def steps(run):
            for step in range(run.num_steps):
                run(step)

        threads = [threading.Thread(target=steps, args=[run], name=str(i)) for i, run in enumerate(runs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6, msg=name)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder in which two processes trained, and were stopped and went on."""
    folder = tmp_path_factory.mktemp("toy")
    torchrun(HERE / "two_processes.py", folder, "whole", "stopped")
    return folder


@pytest.mark.parametrize(("name", "layers"), [("plain", ()), ("fading", FADING)])
def test_two_processes_are_one_that_averages_their_gradients(toy, monkeypatch, name, layers):
    runs = [toy_run(rank, *layers) for rank in (0, 1)]
    routes = [[run.streams.batch(step).effect for run in runs] for step in range(runs[0].num_steps)]
    assert any((one is None) != (other is None) for one, other in routes)
    TwoThreads(monkeypatch).run(runs)
    states = [load_file(toy / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert_close(states[0], runs[0].tensors())
    alone = toy_run(0, *layers)
    monkeypatch.undo()
    for step in range(alone.num_steps):
        alone(step)
    assert not torch.allclose(states[0]["student.0"], alone.tensors()["student.0"], atol=1e-5)


def test_one_checkpoint_and_one_log_serve_all_processes(toy):
    assert len((toy / "plain" / "log.jsonl").read_text().splitlines()) == 11
    assert len(list((toy / "plain" / "checkpoints").iterdir())) == 2


def test_a_signal_to_one_process_stops_all_at_one_step_and_they_resume(toy):
    told = [(toy / f"interrupted-{rank}").read_text() for rank in (0, 1)]
    assert told == ["stopped after step 6 of 11"] * 2
    whole = load_file(toy / "plain-0.safetensors")
    for rank in (0, 1):
        resumed = load_file(toy / f"resumed-{rank}.safetensors")
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_every_schedule_length_is_drawn_and_is_the_same_in_all_processes():
    runs = [toy_run(rank) for rank in (0, 1)]
    lengths = [[run.streams.schedule_length(step, (4, 2)) for step in range(20)] for run in runs]
    assert lengths[0] == lengths[1]
    assert set(lengths[0]) == {2, 4}
