"""Two launches on loopback, as if on two hosts: with a folder each, and when one of them dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from helpers import bench_collection
from helpers.lives import begin_two, launch_two

import collectionlora
from collectionlora.runs.checkpoint import latest_checkpoint
from collectionlora.system import heartbeat, processes
from collectionlora.system.errors import UserError

pytestmark = pytest.mark.thorough

PROMPTS = {"sepia": "<sepia_x> brown it", "thermal": "<thermal_y> see heat"}
STOPPED = "error: processes: another process of this launch stopped"


def files(folder, *suffixes):
    """Names below a folder of what a verb wrote there."""
    made = [
        path for sub in ("cache", "runs", "bench") for path in (folder / sub).rglob("*") if path.is_file()
    ]
    return sorted(path.relative_to(folder).as_posix() for path in made if path.suffix in suffixes)


def two_folders(folder):
    """A collection as its user brings it, always the same, and a copy of it for the other host."""
    torch.manual_seed(0)
    bench_collection.build(folder / "first", PROMPTS)
    (folder / "first" / "collection.safetensors").unlink()
    shutil.copytree(folder / "first", folder / "second")
    return folder / "first", folder / "second"


def launch_hosts(folders, *arguments):
    """A distillation by `torchrun --nnodes 2`, as users start one; what each host prints."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    launches = []
    for number, own in enumerate(folders):
        command = [*launcher, "--node-rank", str(number), "-m", "--", "collectionlora", "distill", str(own)]
        command += ["--json", *arguments]
        launches.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    said = [launch.communicate(timeout=200) for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], said
    return [out.decode() for out, _ in said]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two folders after a distillation on two hosts."""
    folders = two_folders(tmp_path_factory.mktemp("hosts"))
    return folders, launch_hosts(folders)


def test_hosts_without_a_shared_folder_make_each_file_once_and_have_it_both(hosts):
    first, second = hosts[0]
    assert files(first, ".safetensors")[:8] == files(second, ".safetensors")
    assert len(files(second, ".safetensors")) == 8  # photos, targets and teachers of two effects, general
    for name in files(second, ".safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_main_host_alone_holds_the_run_and_speaks(hosts):
    (first, second), said = hosts
    assert json.loads(said[0]) == {"adapter": str(first / "collection.safetensors")}
    assert said[1] == ""
    assert (first / "collection.safetensors").exists()
    assert not (second / "collection.safetensors").exists()
    assert not (second / "runs").exists()


def test_hosts_with_a_shared_folder_make_the_same_adapter_and_go_on_from_one_checkpoint(hosts, tmp_path):
    (first, _), _ = hosts
    shared, _ = two_folders(tmp_path)
    often = ["--set", "distill.checkpoint_minutes=0"]
    said = launch_hosts([shared, shared], *often)
    adapter = shared / "collection.safetensors"
    assert [json.loads(said[0]), said[1]] == [{"adapter": str(adapter)}, ""]
    assert adapter.read_bytes() == (first / "collection.safetensors").read_bytes()
    cached = [path.name for path in sorted((shared / "cache").iterdir())]
    assert cached == [path.name for path in sorted((first / "cache").iterdir())]
    run = shared / "runs" / "default"
    for name in ("step-00000002.json", "step-00000002.safetensors"):  # as if it had stopped before this step
        (run / "checkpoints" / name).unlink()
    made = adapter.read_bytes()
    adapter.unlink()
    launch_hosts([shared, shared], "--resume", *often)
    assert adapter.read_bytes() == made
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [0, 1]


@pytest.fixture(scope="module")
def unlike(hosts):
    """What each of two hosts says that are not alike, of several reasons."""
    first, second = hosts[0]
    for folder in (first, second):
        shutil.copytree(folder, folder.with_name(f"{folder.name}-unlike"))
    teachers = second.with_name("second-unlike") / "teachers"
    shutil.copyfile(teachers / "thermal.safetensors", teachers / "sepia.safetensors")
    codes, told = launch_two([[first, second], [second, first]], first.parent, run=refuse, hosts=2)
    assert codes == [0, 0], told
    return [json.loads(text.splitlines()[-1]) for text in told]


def refuse():
    """Of a host: its own folder, and the other one's."""
    own, other = sys.argv[1:]
    said = {}
    with processes.joined():
        cases = {
            "settings": (own, {"distill": {"seed": processes.rank()}}),
            "rank": (other, {}),
            "teacher": (f"{own}-unlike", {}),
        }
        for name, (folder, layer) in cases.items():
            with pytest.raises(UserError) as error:
                collectionlora.distill(folder, overrides=layer, resume=True)
            said[name] = str(error.value)
    print(json.dumps(said))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("settings", "distill.seed: is not the same in all processes; give all hosts the same command"),
        ("rank", "holds steps on another host than that of rank 0; give that host --node-rank 0"),
        ("teacher", "what teacher-sepia is made from is not the same in all processes; copy the collection"),
    ],
)
def test_hosts_that_are_not_alike_all_say_so(unlike, what, message):
    for said in unlike:
        assert message in said[what]


def begin_long(folders, tmp_path, *more):
    """A distillation of many steps on two hosts, when it has taken some."""
    checkpoints = folders[0] / "runs" / "default" / "checkpoints"
    long = ["--set", "distill.student_updates=5000", "--set", "distill.checkpoint_minutes=0", *more]
    lives = begin_two([["distill", folder, *long] for folder in folders], tmp_path, hosts=2)
    lives[0].wait(100, until=lambda: (checkpoints / "step-00000005.json").exists())
    return lives, checkpoints


def test_a_host_that_dies_ends_the_other_in_a_line_and_one_process_goes_on(hosts, tmp_path):
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in hosts[0]]
    # A host without the checkpoint gets it.
    lives, checkpoints = begin_long(folders, tmp_path, "--resume")
    lives[1].kill()
    assert lives[0].wait(30) == 2
    said = lives[0].told.read_text()
    assert said.count("error: ") == said.count(STOPPED) == 1
    assert "Traceback" not in said
    assert "frame #" not in said
    assert "distill.student_updates was 1 and is 5000; the run goes on" in said
    step, _ = latest_checkpoint(checkpoints)
    assert step >= 5
    collectionlora.distill(folders[0], resume=True, overrides={"distill": {"student_updates": step + 1}})
    log = (folders[0] / "runs" / "default" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(step + 2))


def test_a_signal_to_one_host_stops_both_with_the_state_saved(hosts, tmp_path):
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in hosts[0]]
    lives, checkpoints = begin_long(folders, tmp_path, "--again")
    os.kill(lives[1].process.pid, signal.SIGTERM)
    assert [life.wait(30) for life in lives] == [130, 130]
    step, _ = latest_checkpoint(checkpoints)
    said = lives[0].told.read_text()
    assert f"stopped after step {step} of 5001; go on with" in said
    assert STOPPED not in said + lives[1].told.read_text()


def wait_for_the_silent():
    """The second process is as a host without power: there, and silent."""
    heartbeat.PERIOD, heartbeat.MAX_SILENCE, heartbeat.GRACE = 0.05, 10, 0.2
    with processes.joined():
        if not processes.is_main():
            os.kill(os.getpid(), signal.SIGSTOP)
        processes.barrier()


def test_a_host_that_falls_silent_ends_the_other(tmp_path):
    lives = begin_two([[], []], tmp_path, run=wait_for_the_silent, hosts=2)
    code = lives[0].wait(30)
    lives[1].kill()
    assert code == 2
    assert STOPPED in lives[0].told.read_text()
