"""The command line: a verb imports what it needs when it runs, and nothing before.

Text and progress go to stderr; `--json` puts one JSON object on stdout. Exit codes: 0 done, 2 the user can
fix it (one line), 1 a fault of ours (traceback), 130 interrupted with the state saved.
"""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from collectionlora.command_line.growth import add, bench, remove
from collectionlora.command_line.options import Folder, Json, Names, Set, VlmKey, VlmTokens, with_token_cap
from collectionlora.command_line.studio import studio
from collectionlora.command_line.terminal import (
    ProgressLine,
    advice_lines,
    describe_lora,
    faults_in_a_line,
    joined_processes,
    methods_table,
    next_after_demo,
    plan_table,
    program,
    prompt_table,
    say,
    tell,
    verbs_table,
)
from collectionlora.config import parse_overrides
from collectionlora.system.errors import Interrupted, UserError
from collectionlora.system.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
SEVERAL_PROCESSES = ("demo", "targets", "distill", "bench")  # verbs that share their work

VlmUrl = Annotated[str | None, typer.Option("--vlm", help="an OpenAI-compatible endpoint: http://HOST/v1")]
VlmModel = Annotated[str | None, typer.Option("--model", help="the endpoint's model")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="where to write")] = Path("demo"),
    effects: Annotated[int, typer.Option(help="how many effects")] = 4,
    seed: int = 0,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """The whole journey on the embedded base and real photographs; resumes.

    Example: collectionlora demo --out demo --effects 4
    """
    from collectionlora.command_line.demo import demo as run_demo

    with joined_processes() as progress:
        metrics = run_demo(out, effects, seed, parse_overrides(overrides or []), progress)
    say(as_json, metrics, methods_table(metrics), next_after_demo(out, metrics["effects"][0]))


@app.command()
def init(
    folder: Folder,
    base: Annotated[str, typer.Option(help="the base model")] = "nano",
    from_loras: Annotated[list[Path] | None, typer.Option(help="effect LoRA files to start from")] = None,
) -> None:
    """A new collection folder with a commented manifest.

    Example: collectionlora init my-collection --from-loras sketch.safetensors
    """
    from collectionlora.manifest.template import create

    create(folder, base, from_loras or [])
    tell(f"made {folder}; next: edit {folder}/collection.yaml, then {program()} check {folder}")


@app.command()
def check(folder: Folder, as_json: Json = False) -> None:
    """Find now what could fail later: manifest, photos, LoRA files against the base, prompts.

    Example: collectionlora check my-collection
    """
    from collectionlora.planning.checking import check_collection

    result = check_collection(folder)
    lines = [f"error: {UserError(**problem)}" for problem in result["problems"]]
    lines += [describe_lora(effect) for effect in result["effects"]]
    say(as_json, result, "\n".join([*lines, "ready" if result["ok"] else "not ready"]))
    if not result["ok"]:
        raise typer.Exit(2)


@app.command()
def teach(folder: Folder, names: Names = None, overrides: Set = None, as_json: Json = False) -> None:
    """Train effect LoRAs from the image pairs in pairs/NAME/{source,target}; resumes.

    Example: collectionlora teach my-collection pencil-sketch --set teach.steps=800
    """
    import collectionlora
    from collectionlora.planning.guard import refuse_too_large

    layer = parse_overrides(overrides or [])
    refuse_too_large("teach", folder, layer)
    with ProgressLine() as progress:
        written = collectionlora.teach(folder, names or [], layer, progress=progress)
    result = {"teachers": [str(path) for path in written]}
    say(as_json, result, "\n".join(f"wrote {path}" for path in written))


@app.command()
def prompts(
    folder: Folder,
    vlm: VlmUrl = None,
    model: VlmModel = None,
    api_key_env: VlmKey = None,
    max_tokens_total: VlmTokens = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Triggers and student prompts, and how orthogonal they are; a model behind --vlm rewrites them.

    Example: collectionlora prompts my-collection --vlm http://localhost:11434/v1 --model qwen2.5vl
    """
    import collectionlora
    from collectionlora.planning.guard import refuse_too_large
    from collectionlora.prompting.endpoint import Endpoint

    layer = with_token_cap(parse_overrides(overrides or []), max_tokens_total)
    refuse_too_large("prompts", folder, layer)
    with ProgressLine() as progress:
        result = collectionlora.prompts(folder, Endpoint.of(vlm, model, api_key_env), layer, progress)
    say(as_json, result, prompt_table(result))


@app.command()
def targets(folder: Folder, overrides: Set = None, as_json: Json = False) -> None:
    """Sample every teacher on its effect's photos, once; resumes.

    Example: collectionlora targets my-collection --set targets.samples=4
    """
    import collectionlora
    from collectionlora.planning.guard import refuse_too_large

    layer = parse_overrides(overrides or [])
    with joined_processes() as progress:
        refuse_too_large("targets", folder, layer)
        counts = collectionlora.targets(folder, layer, progress=progress)
    say(as_json, counts, "\n".join(f"{name}: {count} targets" for name, count in counts.items()))


@app.command()
def plan(
    folder: Annotated[Path | None, typer.Argument(help="a collection's folder, or give --base")] = None,
    base: Annotated[str | None, typer.Option(help="a base, without a collection")] = None,
    effects: Annotated[
        int | None, typer.Option(min=1, help="how many; default: the collection's, or 50")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="of student and critic")] = None,
    teacher_rank: Annotated[int | None, typer.Option(min=1, help="of the effects; default: --rank")] = None,
    photos: Annotated[int, typer.Option(min=1, help="of each effect")] = 20,
    devices: Annotated[int, typer.Option(min=1, help="how many GPUs")] = 1,
    sharding: Annotated[
        str | None,
        typer.Option(help="ddp: each holds all; fsdp: each its share; default: model.sharding"),
    ] = None,
    seconds_per_forward: Annotated[
        float | None, typer.Option(min=0, help="of one image on your GPU, for the hours of each verb")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Memory, disk and time of every verb before anything is loaded; which GPUs a distillation fits.

    Example: collectionlora plan --base Qwen/Qwen-Image-Edit-2509 --effects 50 --rank 128
    """
    from collectionlora.planning import plan as planning
    from collectionlora.planning.advice import advise
    from collectionlora.planning.workload import make_workload

    layer = parse_overrides(overrides or [])
    workload = make_workload(
        folder,
        base,
        effects,
        rank,
        layer,
        photos=photos,
        teacher_rank=teacher_rank,
        devices=devices,
        sharding=sharding,
    )
    planned = planning.plan(workload, seconds_per_forward=seconds_per_forward)
    result = {**planned, "advice": advise(workload)}
    say(as_json, result, plan_table(workload.base, result), verbs_table(result), advice_lines(result))


@app.command()
def distill(
    folder: Folder,
    run: Annotated[str, typer.Option(help="name of the run's folder under runs/")] = "default",
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="start over; the earlier run and adapter are kept beside")
    ] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Distil all effects into one LoRA; ends with collection.safetensors.

    Example: collectionlora distill my-collection --set distill.student_updates=1000
    """
    import collectionlora
    from collectionlora.planning.guard import refuse_too_large

    layer = parse_overrides(overrides or [])
    try:
        with joined_processes() as progress:
            refuse_too_large("distill", folder, layer)
            path = collectionlora.distill(folder, run, layer, resume, again, progress)
    except Interrupted as stopped:
        tell(f"{stopped}; go on with: collectionlora distill {folder} --run {run} --resume")
        raise typer.Exit(130) from None
    say(
        as_json,
        {"adapter": str(path)},
        f"the adapter is {path}; next: {program()} edit {folder} PHOTO --effect all",
    )


@app.command()
def edit(
    collection: Annotated[Path, typer.Argument(help="the folder, the one file, or nano: what ships")],
    effect: Annotated[str, typer.Option(help="the effect to apply, or all for a result of each")],
    photo_argument: Annotated[
        Path | None, typer.Argument(metavar="[PHOTO]", help="a photo, or a folder of photos")
    ] = None,
    then: Annotated[list[str] | None, typer.Option(help="a further effect, applied after the first")] = None,
    photo: Annotated[Path | None, typer.Option(help="the same as PHOTO")] = None,
    out: Annotated[
        Path | None, typer.Option(help="a file or a folder; default: PHOTO-EFFECT.png beside the photo")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace results that exist")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="default: what the adapter was made for")] = None,
    seed: int = 0,
    strength: Annotated[float, typer.Option(min=0, max=1, help="0 is the photo, 1 the whole effect")] = 1.0,
    reference: Annotated[
        list[Path] | None, typer.Option(help="a reference image, for each that the effect was taught with")
    ] = None,
    as_json: Json = False,
) -> None:
    """Edit one photo, or all photos of a folder. Photos and existing files are never replaced unasked.

    Example: collectionlora edit my-collection me.jpg --effect neon-edges
    """
    from collectionlora.editing import edit_files
    from collectionlora.planning.guard import refuse_too_large_adapter

    source = photo or photo_argument
    if source is None or (photo and photo_argument):
        message = "is given twice" if source else "is missing"
        raise UserError("", "PHOTO", message, "give one photo, or one folder of photos")
    refuse_too_large_adapter("edit", collection)
    with ProgressLine() as progress:
        edited = edit_files(
            collection,
            source,
            effect,
            then or [],
            out,
            overwrite,
            seed,
            steps,
            strength,
            reference or [],
            progress,
        )
    lines = [f"error: {fault}" for fault in edited.failed] + [f"wrote {path}" for path in edited.written]
    if edited.skipped:
        lines.append(f"{len(edited.skipped)} results exist already; --overwrite makes them again")
    result = {
        "images": [str(path) for path in edited.written],
        "skipped": [str(path) for path in edited.skipped],
        "failed": [fault.as_dict() for fault in edited.failed],
    }
    say(as_json, result, "\n".join(lines))
    if edited.failed:
        raise typer.Exit(2)


for verb in (bench, add, remove):
    app.command()(verb)


@app.command()
def export(
    collection: Annotated[Path, typer.Argument(help="the folder, or the one file")],
    format: Annotated[str, typer.Option(help="diffusers, peft or comfyui")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    rank: Annotated[int | None, typer.Option(min=1, help="reduce to this rank by singular values")] = None,
    preview: Annotated[
        list[Path] | None, typer.Option(help="an image for the model card, named after its effect")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that exist")] = False,
    as_json: Json = False,
) -> None:
    """The finished adapter for diffusers, PEFT or ComfyUI, with model card, scheduler, example or workflow.

    Example: collectionlora export my-collection --format diffusers --out my-collection-lora
    """
    from collectionlora.exporting.export import export as run_export

    result = run_export(collection, format, out, rank, preview or [], overwrite)
    lines = [f"wrote {path}" for path in result["files"]]
    if reduction := result["reduction"]:
        lines.append(
            "relative error of the smaller rank: {overall:.2g} overall, at most {worst:.2g} "
            "({worst_module})".format(**reduction)
        )
    say(as_json, result, "\n".join(lines))


app.command()(studio)


def show_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True)] = False,
) -> None:
    """Distil many effect LoRAs and few-step generation into one LoRA."""
    verb = str(context.invoked_subcommand)
    if verb not in SEVERAL_PROCESSES and os.environ.get("WORLD_SIZE", "1") != "1":
        message, hint = f"{verb} runs in one process", "start it without torchrun"
        raise UserError("environment", "WORLD_SIZE", message, hint)


def main() -> None:
    """The entry point: fixable faults are one line and exit code 2."""
    # peft imports it where it is installed, and it then tells every user of a CPU about a kernel of its own.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Pillow warns of photos that `read_photo` reads all the same, or refuses in its own words.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    run: Callable[[], None] = app
    with faults_in_a_line():
        run()
