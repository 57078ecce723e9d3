"""The recipes: settings that exist, and launches on several hosts as far as they go on this one."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from torch.distributed.run import parse_args

from collectionlora.backbones import family_of
from collectionlora.command_line.verbs import app
from collectionlora.config import RECIPES as NAMED
from collectionlora.config import replace_settings, resolve

RECIPES = Path(__file__).parents[1] / "recipes"
SLURM, SKY = RECIPES / "2x8x80gb.sbatch", RECIPES / "2x8x80gb.sky.yaml"
# Commands that stand in: what they are called with is in a file, or what they would say.
COMMANDS = {
    "torchrun": 'printf "%s\\0" "$@" >"$SAID/${SLURM_NODEID-$SKYPILOT_NODE_RANK}"',
    "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || exit; done',
    "scontrol": '[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"',
}
# https://docs.skypilot.co/en/latest/reference/yaml-spec.html
FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}


@pytest.fixture
def run(tmp_path):
    """Runs a script, and returns what torchrun was asked for by rank of the host."""
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/bash\n{text}\n")
        command.chmod(0o755)

    def run_script(*arguments, **environment):
        paths = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SAID": str(tmp_path),
            "HOME": str(tmp_path),
        }
        subprocess.run(["bash", *map(str, arguments)], check=True, env={**paths, **environment})
        said = {path.name: path.read_text().split("\0")[:-1] for path in tmp_path.glob("[0-9]")}
        return {rank: parse_args(options) for rank, options in said.items()}

    return run_script


def check_launch(launches, head, collection):
    """Each host starts its eight of sixteen processes, of a command that there is."""
    assert sorted(launches) == ["0", "1"]
    for rank, launch in launches.items():
        assert (launch.nnodes, str(launch.node_rank), launch.nproc_per_node) == ("2", rank, "8")
        assert (launch.master_addr, launch.module) == (head, True)
        assert (launch.training_script, launch.training_script_args[0]) == ("collectionlora", "distill")
        command = typer.main.get_command(app).commands["distill"]
        given = command.make_context("distill", launch.training_script_args[1:]).params
        assert (str(given["folder"]), given["resume"]) == (collection, True)


def test_the_slurm_script_starts_one_launch_on_both_hosts(run):
    launches = run(SLURM, "my-collection", SLURM_JOB_NODELIST="node[7-8]", SLURM_NNODES="2")
    check_launch(launches, "node7", "my-collection")


def test_the_slurm_script_asks_for_the_hosts_and_gpus_that_it_uses():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE))
    assert [options[n] for n in ("nodes", "ntasks-per-node", "gpus-per-node")] == ["2", "1", "8"]
    # A signal before the time is over, for a step and a checkpoint; the job that follows goes on in the log.
    assert (options["signal"], options["open-mode"]) == ("TERM@300", "append")
    assert "requeue" in options


def test_the_task_for_a_cloud_starts_one_launch_on_both_hosts(run, tmp_path):
    task = yaml.safe_load(SKY.read_text())
    assert set(task) <= FIELDS
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    hosts = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}
    for rank in ("0", "1"):
        own = {"SKYPILOT_NODE_RANK": rank, "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
        launches = run("-c", task["run"], **hosts, **own)
    check_launch(launches, "10.0.0.7", str(tmp_path / "collection"))
    assert task["file_mounts"] == {"~/collection": "my-collection"}


def test_every_recipe_is_planned_with_its_own_settings():
    """A recipe's file, over what its base recommends, is what its command in the page plans."""
    planned = runpy.run_path(str(RECIPES.parent / "scripts" / "meta_peaks.py"))["read_recipes"]()
    files = {path.name: yaml.safe_load(path.read_text()) for path in RECIPES.glob("*.yaml")}
    recipes = {name: file for name, file in files.items() if "settings" in file}
    assert len(recipes) == 10
    assert planned.keys() == {*recipes, SLURM.name}  # which takes the settings of one of them
    for name, recipe in recipes.items():
        workload = planned[name]
        layers = (
            family_of(workload.base).recommended_settings(workload.base),
            NAMED[recipe.get("recipe", "default")],
        )
        settings = resolve(*layers, recipe["settings"])
        assert (workload.sharding == "fsdp") == (settings.model.sharding == "fsdp"), name
        assert replace_settings(settings, model={"sharding": "none"}) == workload.settings, name
