import json
import signal

import pytest
import torch

from collectionlora.adapters.roles import STUDENT
from collectionlora.checkpoint import latest_checkpoint, save_checkpoint
from collectionlora.effectbench.toy_world import ToyWorld, toy_settings
from collectionlora.errors import UserError
from collectionlora.trainer import Interrupted, train

SETTINGS = ({"match": {"updates": 3}}, {"distill": {"student_updates": 4, "batch_size": 16}})


@pytest.fixture(scope="module")
def world():
    return ToyWorld(num_effects=2, base_steps=3, teacher_steps=3)


def run_of(world):
    return world.distillation(toy_settings(*SETTINGS))


def state(run):
    return {name: tensor.clone() for name, tensor in run.tensors().items()}


def quiet(*_):
    pass


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6])
def test_a_stopped_run_resumes_bit_identically(world, tmp_path, stop_after):
    whole = run_of(world)
    train(whole, tmp_path / "whole", 2, False, quiet)

    class Stopped(type(whole)):
        def __call__(self, step):
            metrics = super().__call__(step)
            if step + 1 == stop_after:
                signal.raise_signal(signal.SIGINT)
            return metrics

    first = run_of(world)
    first.__class__ = Stopped
    with pytest.raises(Interrupted, match=f"step {stop_after} of 7"):
        train(first, tmp_path / "cut", 2, False, quiet)
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "sec')  # what a killed process leaves
    second = run_of(world)
    train(second, tmp_path / "cut", 2, True, quiet)

    expected, found = state(whole), state(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    losses = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs]
    assert losses[0] == losses[1]
    seconds = [json.loads(line)["seconds"] for line in logs[1]]
    assert seconds == sorted(seconds)


def test_a_run_whose_roles_are_broken_does_not_start(world, tmp_path):
    run = run_of(world)
    for layer in run.roles.layers.values():
        layer._active_adapter = [STUDENT]
    with pytest.raises(UserError, match="bare base reads a LoRA"):
        train(run, tmp_path, 2, False, quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, 5, {"a": torch.ones(3)})
    save_checkpoint(tmp_path, 9, {"a": torch.zeros(3)})
    newest = tmp_path / "step-00000009.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    step, tensors = latest_checkpoint(tmp_path)
    assert step == 5
    assert torch.equal(tensors["a"], torch.ones(3))


def test_only_the_last_checkpoints_are_kept(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, step, {"a": torch.ones(1)})
    assert len(list(tmp_path.iterdir())) == 2
    assert latest_checkpoint(tmp_path)[0] == 4


def test_the_finished_lora_is_the_moving_average(world):
    run = run_of(world)
    for step in range(run.num_steps):
        run(step)
    weights = run.student_weights()
    assert not any(average.requires_grad for average in run.ema)  # else every update would stay in memory
    live = run.roles.weights(STUDENT)
    assert weights.keys() == live.keys()
    assert any(not torch.equal(weights[m][1], live[m][1]) for m in weights)
    run.roles.load(STUDENT, weights)
    assert all(torch.equal(p, e) for p, e in zip(run.roles.parameters(STUDENT), run.ema, strict=True))
