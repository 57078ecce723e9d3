import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from collectionlora.adapters.optimizers import load_optimizer, make_adamw, optimizer_tensors
from collectionlora.adapters.roles import STUDENT
from collectionlora.runs import checkpoint
from collectionlora.runs.checkpoint import latest_checkpoint, save_checkpoint
from collectionlora.runs.folder import begin, hold
from collectionlora.runs.trainer import train
from collectionlora.system.errors import Interrupted, UserError
from collectionlora.system.files import read_json, sha256, write_tensors, write_text
from collectionlora.toy.world import ToyWorld, toy_settings

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
    train(whole, tmp_path / "whole", 0, False, quiet, 3)

    class Stopped(type(whole)):
        def __call__(self, step):
            metrics = super().__call__(step)
            if step + 1 == stop_after:
                signal.raise_signal(signal.SIGINT)
            return metrics

    first = run_of(world)
    first.__class__ = Stopped
    with pytest.raises(Interrupted, match=f"step {stop_after} of 7"):
        train(first, tmp_path / "cut", 0, False, quiet, 3)
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "sec')  # what a killed process leaves
    second = run_of(world)
    train(second, tmp_path / "cut", 0, True, quiet, 3)

    expected, found = state(whole), state(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    losses = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs]
    assert losses[0] == losses[1]
    seconds = [json.loads(line)["seconds"] for line in logs[1]]
    assert seconds == sorted(seconds)


def test_moments_are_saved_in_the_order_of_the_parameters_at_any_rates():
    weights = [torch.full((number,), float(number), requires_grad=True) for number in range(1, 5)]

    def optimizer(ratio):
        return make_adamw(weights, 1e-3, 0.0, loraplus_lr_ratio=ratio)

    trained = optimizer(1.0)
    for weight in weights:
        weight.grad = weight.detach().clone()
    trained.step()
    saved = optimizer_tensors("student", trained)
    for number, weight in enumerate(weights):
        torch.testing.assert_close(saved[f"student.{number}.exp_avg"], 0.1 * weight.grad)
    restored = optimizer(4.0)
    load_optimizer("student", restored, saved)
    found = optimizer_tensors("student", restored)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert [group["lr"] for group in restored.param_groups] == [1e-3, 4e-3]


class Counting:
    """Trains one number, which is that of the steps taken; `seen` is called in each step."""

    num_steps = 6

    def __init__(self, seen=quiet):
        self.number, self.seen = torch.zeros(1), seen

    def verify(self):
        pass

    def __call__(self, step):
        self.seen(step)
        self.number += 1
        return {"loss": 1.0}

    def stream_at(self, step):
        return "effect", None

    def tensors(self):
        return {"number": self.number}

    def load_tensors(self, tensors):
        self.number.copy_(tensors["number"])


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    later, begun = threading.Event(), []

    def write_slowly(path, *rest):
        begun.append(path.name)
        assert later.wait(10), "training waits for the file"
        write_tensors(path, *rest)

    monkeypatch.setattr(checkpoint, "write_tensors", write_slowly)
    minutes = iter([0, 60] + [0] * 20)  # the first checkpoint is due after the first step
    monkeypatch.setattr(checkpoint, "monotonic", lambda: 60 * next(minutes))

    def see(step):
        if step == 3:
            assert begun == ["step-00000001.safetensors"]
            later.set()

    train(Counting(see), tmp_path, 60, False, quiet, 3)
    assert begun == ["step-00000001.safetensors", "step-00000006.safetensors"]
    for step in (1, 6):
        path = tmp_path / "checkpoints" / f"step-{step:08d}.safetensors"
        assert load_file(path) == {"number": torch.tensor([float(step)])}
        assert json.loads(path.with_suffix(".json").read_text())["sha256"] == sha256(path)


@pytest.mark.parametrize(("minutes", "expected"), [(0, [4, 5, 6]), (4, [2, 4, 6]), (100, [6])])
def test_checkpoints_come_by_the_clock_and_at_the_end(tmp_path, monkeypatch, minutes, expected):
    now = [0.0]
    monkeypatch.setattr(checkpoint, "monotonic", lambda: now[0])

    def pass_time(_step):
        now[0] += 120

    train(Counting(pass_time), tmp_path, minutes, False, quiet, 3)
    found = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.safetensors"))
    assert found == [f"step-{n:08d}.safetensors" for n in expected]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="checkpoints"):
        train(Counting(), tmp_path, 0, False, quiet, 3)


def test_a_run_whose_roles_are_broken_does_not_start(world, tmp_path):
    run = run_of(world)
    for layer in run.roles.layers.values():
        layer._active_adapter = [STUDENT]
    with pytest.raises(UserError, match="bare base reads a LoRA"):
        train(run, tmp_path, 0, False, quiet, 3)
    assert list(tmp_path.iterdir()) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def flip_last(path):
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("safetensors", cut),
        ("safetensors", empty),
        ("safetensors", flip_last),
        ("json", cut),
        ("json", empty),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path, caplog, kind, damage):
    save_checkpoint(tmp_path, 5, 9, {"a": torch.ones(3)}, keep=3)
    save_checkpoint(tmp_path, 9, 9, {"a": torch.zeros(3)}, keep=3)
    damage(tmp_path / f"step-00000009.{kind}")
    step, tensors = latest_checkpoint(tmp_path)
    assert step == 5
    assert torch.equal(tensors["a"], torch.ones(3))
    assert len(caplog.messages) == 1
    assert "step-00000009.safetensors: is damaged" in caplog.messages[0]


def test_a_checkpoint_whose_json_was_not_written_yet_is_whole(tmp_path):
    save_checkpoint(tmp_path, 5, 9, {"a": torch.ones(3)}, keep=3)
    (tmp_path / "step-00000005.json").unlink()
    assert latest_checkpoint(tmp_path)[0] == 5


def test_only_the_last_checkpoints_are_kept(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, step, 9, {"a": torch.ones(1)}, keep=3)
    assert len(list(tmp_path.iterdir())) == 6
    assert latest_checkpoint(tmp_path)[0] == 4


def test_what_lies_after_a_damaged_checkpoint_does_not_push_out_good_ones(tmp_path):
    for step in (4, 5, 6):
        save_checkpoint(tmp_path, step, 9, {"a": torch.ones(1)}, keep=1)
    cut(tmp_path / "step-00000006.safetensors")
    save_checkpoint(tmp_path, 3, 9, {"a": torch.zeros(1)}, keep=1)
    assert latest_checkpoint(tmp_path)[0] == 3


class Diverging:
    """Wraps a run: its losses are no numbers from one step on, and so are its weights."""

    def __init__(self, run, at):
        self.run, self.at = run, at

    def __getattr__(self, name):
        return getattr(self.run, name)

    def __call__(self, step):
        if step == self.at:
            with torch.no_grad():
                self.run.roles.parameters(STUDENT)[0].fill_(float("nan"))
        return self.run(step)


def test_numbers_that_are_none_stop_the_run_and_the_last_good_checkpoint_stays(world, tmp_path):
    run = Diverging(run_of(world), at=4)
    with pytest.raises(UserError) as stopped:
        train(run, tmp_path, 0, False, quiet, 3)
    said = str(stopped.value)
    assert "is nan at step 5 of 7" in said
    effect = run.streams.effect_at(4)
    assert ("(general stream)" if effect is None else f"(effect stream, effect {effect})") in said
    step, tensors = latest_checkpoint(tmp_path / "checkpoints")
    assert step == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_checkpoint_of_another_run_is_named(world, tmp_path):
    train(run_of(world), tmp_path, 0, False, quiet, 3)
    other = world.distillation(toy_settings(*SETTINGS, {"student": {"rank": 3}, "critic": {"rank": 3}}))
    with pytest.raises(UserError, match=r"step-00000007.safetensors: ema.0: is .*, this run needs .*; give"):
        train(other, tmp_path, 0, True, quiet, 3)


@pytest.mark.parametrize("line", ['{"step": 3, "sec', "\0\0\0", "[]", '{"seconds": 1}', "\ufffd"])
def test_a_log_that_ends_in_rubbish_goes_on(world, tmp_path, line):
    train(run_of(world), tmp_path, 0, False, quiet, 3)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:3], line]))
    for path in (tmp_path / "checkpoints").glob("step-00000007.*"):
        path.unlink()
    train(run_of(world), tmp_path, 0, True, quiet, 3)
    steps = [json.loads(entry)["step"] for entry in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, *range(6, 7)]


def test_one_process_holds_a_folder_and_death_frees_it(tmp_path):
    with (
        hold(tmp_path),
        pytest.raises(UserError, match=f"held by process {os.getpid()} on .* since 20"),
        hold(tmp_path),
    ):
        pass
    with hold(tmp_path):
        pass


def test_a_run_begun_otherwise_starts_again_unless_told_to_go_on(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    assert begin(tmp_path, {"rank": 2, "rate": 0.1}, resume=True)
    save_checkpoint(folder, 5, 9, {"a": torch.ones(1)}, keep=3)
    assert begin(tmp_path, {"rank": 2, "rate": 0.1}, resume=True)
    assert not caplog.messages
    assert begin(tmp_path, {"rank": 2, "rate": 0.2}, resume=True, anyway=True)
    assert "rate was 0.1 and is 0.2; the run goes on" in caplog.messages[-1]
    assert latest_checkpoint(folder)[0] == 5
    assert not begin(tmp_path, {"rank": 2, "rate": 0.3}, resume=True)
    assert "rate was 0.2 and is 0.3; the run starts again" in caplog.messages[-2]
    assert latest_checkpoint(folder) is None
    (kept,) = tmp_path.parent.glob(f"{tmp_path.name}-*")
    assert latest_checkpoint(kept / "checkpoints")[0] == 5
    assert read_json(kept / "run.json") == {"rank": 2, "rate": 0.2}
    assert begin(tmp_path, {"rank": 2, "rate": 0.3}, resume=True)


def test_the_finished_lora_is_the_moving_average_of_both_phases(world):
    run = world.distillation(toy_settings(*SETTINGS, {"match": {"loss": "flow"}}))
    expected = [parameter.detach().clone() for parameter in run.roles.parameters(STUDENT)]
    kept = run.settings.distill.ema
    for step in range(run.num_steps):
        run(step)
        for average, parameter in zip(expected, run.roles.parameters(STUDENT), strict=True):
            average.mul_(kept).add_(parameter.detach(), alpha=1 - kept)
    torch.testing.assert_close(run.ema, expected)
    weights = run.student_weights()
    assert not any(average.requires_grad for average in run.ema)  # else every update would stay in memory
    live = run.roles.weights(STUDENT)
    assert weights.keys() == live.keys()
    assert any(not torch.equal(weights[m][1], live[m][1]) for m in weights)
    run.roles.load(STUDENT, weights)
    assert all(torch.equal(p, e) for p, e in zip(run.roles.parameters(STUDENT), run.ema, strict=True))


def test_what_a_killed_process_left_half_written_is_removed_and_no_other(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    abandoned = tmp_path / f".step-00000004.safetensors.{host}.{gone.pid}.partial"
    alive = tmp_path / f".other.json.{host}.{os.getpid()}.partial"
    elsewhere = tmp_path / f".other.json.elsewhere.{gone.pid}.partial"
    for path in (abandoned, alive, elsewhere):
        path.mkdir()
        (path / ".tmpOfALibrary").write_text("half")
    save_checkpoint(tmp_path, 5, 9, {"a": torch.ones(1)}, keep=3)
    assert [path.exists() for path in (abandoned, alive, elsewhere)] == [False, True, True]


def test_a_library_that_is_killed_while_it_writes_leaves_nothing_beside_the_file(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from collectionlora.system.files import write_whole
with write_whole(Path(sys.argv[1]) / "step.safetensors") as partial:
    partial.with_name(".tmpOfALibrary").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -9
    write_text(tmp_path / "other.txt", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
