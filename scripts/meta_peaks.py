"""Each recipe's verbs at true depth on the meta device, beside what `plan` says of them.

A plan counts weights, tallies two or three blocks and adds up. Here all blocks are there, with everything
that a verb holds, and one tally counts every tensor. The meta device packs no weights, keeps no 8-bit moments
and no moving average on the host, and shards nothing: these parts are tallied as they are without, and then
replaced by the plan's. Recipes of the same shapes share a tally. Writes as it goes and resumes: without
docs/results/meta_peaks.json all is tallied anew, which takes about half an hour of one core.

python scripts/meta_peaks.py --write
"""

import argparse
import re
import runpy
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer

from collectionlora.adapters.merged import Merged
from collectionlora.adapters.roles import STUDENT, TEACHER, Roles, target_weights
from collectionlora.backbones.base import Backbone
from collectionlora.command_line.verbs import app
from collectionlora.config import parse_overrides
from collectionlora.planning import peaks
from collectionlora.planning.memory import MemoryTally, flash_on_meta
from collectionlora.planning.plan import GIB, weigh
from collectionlora.planning.rows import Held, Sizes, network_bytes
from collectionlora.planning.workload import Workload, make_workload
from collectionlora.system.files import fingerprint, read_json, write_json

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "docs" / "results" / "meta_peaks.json", ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- made by scripts/meta_peaks.py -->\n", "<!-- end -->\n"
RECIPES = runpy.run_path(str(ROOT / "scripts" / "recipes.py"))
VERBS = ("teach", "targets", "distill", "bench", "edit")  # `add` is as `distill`, the others encode
FLOAT_MOMENTS = 2  # for each float of a trained LoRA


def read_recipes() -> dict[str, Workload]:
    """The workload of each plan in the recipes' page, by the name of the first file above it."""
    found = {}
    for before, arguments, _ in RECIPES["split_sections"](RECIPES["README"].read_text()):
        if arguments:
            heading = before.rpartition("\n## ")[2].partition("\n")[0]
            found[re.findall(r"\[(.+?)\]", heading)[0]] = read_plan(arguments)
    return found


def read_plan(arguments: str) -> Workload:
    """The workload of a `plan` over a base."""
    group = typer.main.get_command(app)
    command = group.commands["plan"]  # type: ignore[attr-defined]
    given = command.make_context("plan", shlex.split(arguments)).params
    layer = parse_overrides(given["overrides"] or [])
    rest = {name: given[name] for name in ("sharding", "teacher_rank", "photos", "devices", "hosts")}
    return make_workload(
        None,
        given["base"],
        given["effects"],
        given["rank"],
        layer,
        recipe=given["recipe"] or "default",
        **rest,
    )


class FullDepth:
    """Tallies of one workload's verbs, the base whole and alone on its device."""

    def __init__(self, workload: Workload):
        self.is_packed = workload.settings.model.quantization != "none"
        self.workload = peaks.step_of(workload)
        self.ranks = self.workload.ranks()

    def measure(self) -> dict[str, int]:
        """The most bytes at once by verb; of a distillation in a step, and in a preview."""
        verbs = self.teach, self.targets, self.bench, self.edit, self.distill
        found: dict[str, int] = {}
        for verb in verbs:
            tally = MemoryTally()
            with tally, flash_on_meta():
                backbone = peaks.load_empty(self.workload, {})
                tally.peaks = [tally.live]  # a real base is read by the host
                found |= verb(tally, backbone)
        return found

    def teach(self, tally: MemoryTally, backbone: Backbone) -> dict[str, int]:
        teaching = peaks.empty_teaching(self.workload, backbone)
        teaching.optimizer.zero_grad()
        tally.peaks = [tally.live]
        teaching(0)
        return {"teach": max(tally.peaks)}

    def targets(self, tally: MemoryTally, backbone: Backbone) -> dict[str, int]:
        ranks = {role: self.ranks[role] for role in (STUDENT, TEACHER)}
        self.sample(backbone, self.make_roles(tally, backbone, ranks), TEACHER, STUDENT)
        return {"targets": max(tally.peaks)}

    def bench(self, tally: MemoryTally, backbone: Backbone) -> dict[str, int]:
        roles = self.make_roles(tally, backbone, self.workload.bench_ranks())
        self.show(backbone, roles, TEACHER, STUDENT)
        return {"bench": max(tally.peaks)}

    def edit(self, tally: MemoryTally, backbone: Backbone) -> dict[str, int]:
        """A whole base takes the student into its weights."""
        if self.is_packed:
            self.show(backbone, self.make_roles(tally, backbone, {STUDENT: self.ranks[STUDENT]}), STUDENT)
        else:
            self.show(backbone, self.merge(tally, backbone), STUDENT)
        return {"edit": max(tally.peaks)}

    def distill(self, tally: MemoryTally, backbone: Backbone) -> dict[str, int]:
        roles = self.make_roles(tally, backbone, self.ranks)
        run, batch = peaks.empty_run(self.workload, backbone, roles, tally)
        for optimizer in run.optimizers.values():
            optimizer.zero_grad()
        tally.peaks = [tally.live]
        shares = peaks.empty_shares(self.workload, batch)
        for update in (run.update_student, run.update_critic):
            update(shares, run.critics[0], 0.0)
        step = max(tally.peaks)
        tally.peaks = [tally.live]
        self.show(backbone, roles, STUDENT)
        return {"step": step, "preview": max(tally.peaks)}

    def make_roles(self, tally: MemoryTally, backbone: Backbone, ranks: Mapping[str, int]) -> Roles:
        """On the meta device peft begins each in float32, elsewhere in the base's dtype."""
        roles = peaks.empty_roles(self.workload, backbone, ranks)
        tally.peaks = [tally.live]
        return roles

    def merge(self, tally: MemoryTally, backbone: Backbone) -> Merged:
        """The host reads the student's file: its bytes are none of the device."""
        before, rank = tally.live, self.ranks[STUDENT]
        student = {
            name: (
                weight.new_empty(rank, *weight.shape[1:], dtype=torch.float32),
                weight.new_empty(len(weight), rank, dtype=torch.float32),
            )
            for name, weight in target_weights(backbone.network, backbone.lora_targets).items()
        }
        host = tally.live - before
        tally.peaks = [0]
        merged = Merged(backbone.network, backbone.lora_targets, STUDENT, student)
        tally.peaks = [max(tally.peaks) - host]
        return merged

    def sample(self, backbone: Backbone, roles: Roles | Merged, *as_role: str) -> None:
        ways = {TEACHER: peaks.sample_as_teacher, STUDENT: peaks.sample_as_student}
        with torch.no_grad(), torch.device("meta"):
            for role in as_role:
                ways[role](self.workload, backbone, roles)

    def show(self, backbone: Backbone, roles: Roles | Merged, *as_role: str) -> None:
        """Pictures are decoded beside the network, and the VAE stays while the next are sampled."""
        shapes = backbone.shapes(peaks.working_sizes(self.workload, backbone)[0])
        with torch.no_grad(), torch.device("meta"):
            backbone.decode(torch.empty(1, *shapes.latents))
        self.sample(backbone, roles, *as_role)


def replace_parts(workload: Workload, sizes: Sizes, held: Held, tallied: dict[str, int]) -> dict[str, int]:
    """By verb, with the parts that the meta device does not have."""
    # With quantisation one layer at a time is unpacked; the plan has it in every workspace.
    packed = sizes.base - sizes.whole_base + sizes.peaks.unpacked
    trained = sizes.moments - FLOAT_MOMENTS * sizes.trained - (sizes.average if sizes.average_on_host else 0)
    shared = sizes.base + sizes.trained + sizes.optimizer
    devices = workload.devices if workload.sharding == "fsdp" else 1
    sharded = held.gathered - (shared - -(-shared // devices))
    between = held.gathered - (shared - sizes.gradient - -(-(shared - sizes.gradient) // devices))
    distilled = (
        # Targets are made beside the critics, before anything trains.
        tallied["targets"] + packed + sizes.trained - sizes.loras[STUDENT],
        tallied["step"] + packed + trained + sharded,
        tallied["preview"] + packed + trained + between,
    )
    alone = {verb: tallied[verb] + packed for verb in ("teach", "targets", "bench", "edit")}
    return {**alone, "distill": max(*distilled, held.start)}


def compare(workload: Workload, tallied: dict[str, int]) -> dict[str, Any]:
    """Bytes on a device while the network is there, as planned and as tallied."""
    _, sizes, held = weigh(workload)
    measured = replace_parts(workload, sizes, held, tallied)
    planned = {verb: network_bytes(verb, workload, sizes, held) for verb in VERBS}
    verbs = {verb: {"planned": planned[verb], "tallied": measured[verb]} for verb in VERBS}
    return {"base": workload.base, "encoding": sizes.encoding, "verbs": verbs}


def measure_all(found: dict[str, Any]) -> None:
    """Tally what is missing, and compare; writes after each recipe."""
    workloads = read_recipes()
    found["recipes"] = {}
    for name, workload in workloads.items():
        depth, began = FullDepth(workload), time.perf_counter()
        key = fingerprint(repr(depth.workload), depth.is_packed)
        if key not in found["tallies"]:
            print(f"{name}: {workload.base}", flush=True)
            tallied = depth.measure()
            found["tallies"][key] = tallied | {"seconds": round(time.perf_counter() - began)}
            write_json(RESULT, found)
        found["recipes"][name] = compare(workload, found["tallies"][key])
    write_json(RESULT, found)


def write_table(found: dict[str, Any]) -> str:
    """Markdown: planned and tallied GiB by recipe and verb, and how far they are apart at most."""
    lines = [f"| recipe | {' | '.join(VERBS)} | furthest |", f"|---|{'---|' * len(VERBS)}---|"]
    for name, recipe in found["recipes"].items():
        pairs = [recipe["verbs"][verb].values() for verb in VERBS]
        cells = [f"{planned / GIB:.2f} / {tallied / GIB:.2f}" for planned, tallied in pairs]
        furthest = max(abs(tallied / planned - 1) for planned, tallied in pairs)
        lines.append(f"| `{name}` | {' | '.join(cells)} | {100 * furthest:.2f} % |")
    missing = [f"`{name}`" for name in read_recipes() if name not in found["recipes"]]
    rest = f"\nNot tallied at true depth, only planned: {', '.join(missing)}.\n" if missing else ""
    return "\n".join(lines) + "\n" + rest


def write_page(found: dict[str, Any]) -> str:
    """The page with the table of what was found."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{write_table(found)}{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/planning.md")
    args = parser.parse_args()
    found = read_json(RESULT) or {"tallies": {}}
    measure_all(found)
    print(write_table(found))
    if args.write:
        PAGE.write_text(write_page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
