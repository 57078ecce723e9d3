"""The verbs that make a collection, from an empty folder to the finished adapter."""

from pathlib import Path
from typing import Annotated

import typer

import collectionlora
from collectionlora.command_line.options import (
    Folder,
    Json,
    Names,
    RecipeName,
    Set,
    VlmKey,
    VlmTokens,
    repeat,
    with_token_cap,
)
from collectionlora.command_line.progress import joined_processes, shown_progress
from collectionlora.command_line.terminal import (
    advice_lines,
    command,
    describe_lora,
    methods_table,
    next_after_demo,
    plan_table,
    prompt_table,
    say,
    settings_table,
    tell,
    verbs_table,
)
from collectionlora.config import parse_overrides
from collectionlora.system.errors import Interrupted, UserError, one_line, quote

VlmUrl = Annotated[
    str | None,
    typer.Option("--vlm", help="an OpenAI-compatible http://HOST/v1, or base for the base's own encoder"),
]
VlmModel = Annotated[str | None, typer.Option("--model", help="the endpoint's model")]


def demo(
    out: Annotated[Path, typer.Option(help="where to write")] = Path("demo"),
    effects: Annotated[int, typer.Option(help="number of effects")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="seed of the crops for training and judging")] = 0,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Run the whole journey on the nano base and real photographs; a repeated command goes on.

    Example: collectionlora demo --out demo --effects 4
    """
    from collectionlora.command_line.demo import demo as run_demo

    with joined_processes() as progress:
        metrics = run_demo(out, effects, seed, parse_overrides(overrides or []), progress)
    say(as_json, metrics, methods_table(metrics), next_after_demo(out, metrics["effects"][0]))


def init(
    folder: Folder,
    loras: Annotated[
        list[Path] | None, typer.Argument(metavar="[LORA]...", help="further files of --from-loras")
    ] = None,
    base: Annotated[str, typer.Option(help="the base model")] = "nano",
    from_loras: Annotated[
        list[Path] | None, typer.Option(help="effect LoRA files to start from, or a folder of them")
    ] = None,
    recipe: Annotated[str, typer.Option(help="default, or paper: the paper's own settings")] = "default",
) -> None:
    """Make a new collection folder with a commented manifest.

    Example: collectionlora init my-collection --from-loras sketch.safetensors
    Example: collectionlora init my-collection --from-loras loras/*.safetensors
    """
    from collectionlora.manifest.template import create

    found = create(folder, base, [*(from_loras or []), *(loras or [])], recipe)
    for lora in found:
        said = "this prompt is a guess" if lora.guessed else "the file states this prompt"
        tell(f"{one_line(str(lora.file))}: effect {lora.name}, {quote(lora.prompt)}; {said}")
    tell(
        f"made {folder}; next: put photos into {folder}/photos, read {folder}/collection.yaml"
        f"{', correct the guessed prompts' if any(lora.guessed for lora in found) else ''}, "
        f"then {command('check', folder)}"
    )


def check(folder: Folder, as_json: Json = False) -> None:
    """Find mistakes before they cost time: in the manifest, photos, LoRA files and prompts.

    Example: collectionlora check my-collection
    """
    from collectionlora.pictures.folders import LeftOut, describe_left_out
    from collectionlora.planning.checking import check_collection

    with shown_progress() as progress:
        result = check_collection(folder, progress)
    lines = [f"error: {UserError(**problem)}" for problem in result["problems"]]
    lines += [describe_lora(effect) for effect in result["effects"]]
    left_out = [LeftOut(Path(one["file"]), one["reason"]) for one in result["left_out"]]
    lines += describe_left_out(folder, left_out)
    lines += [
        f"{name}: its teacher_prompt is what init guesses; make sure that the LoRA was trained with it"
        for name in result["guessed_prompts"]
    ]
    again = f"not ready; fix what is named above, then: {command('check', folder)}"
    lines.append(f"ready; next: {command('prompts', folder)}" if result["ok"] else again)
    say(as_json, result, "\n".join(lines))
    if not result["ok"]:
        raise typer.Exit(2)


def teach(folder: Folder, names: Names = None, overrides: Set = None, as_json: Json = False) -> None:
    """Train effect LoRAs from the image pairs in pairs/NAME/{source,target}; a repeated command goes on.

    Example: collectionlora teach my-collection pencil-sketch --set teach.steps=800
    """
    layer = parse_overrides(overrides or [])
    with shown_progress() as progress:
        written = collectionlora.teach(folder, names or [], layer, progress=progress)
    result = {"teachers": [str(path) for path in written]}
    lines = [*(f"wrote {path}" for path in written), f"next: {command('prompts', folder)}"]
    say(as_json, result, "\n".join(lines))


def prompts(
    folder: Folder,
    vlm: VlmUrl = None,
    model: VlmModel = None,
    api_key_env: VlmKey = None,
    max_tokens_total: VlmTokens = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Write triggers and student prompts and measure how different they are; --vlm lets a model write them.

    Example: collectionlora prompts my-collection --vlm http://localhost:11434/v1 --model qwen2.5vl
    Example: collectionlora prompts my-collection --vlm base
    """
    from collectionlora.prompting.own_encoder import choose
    from collectionlora.prompting.writing import NO_PAIRS

    layer = with_token_cap(parse_overrides(overrides or []), max_tokens_total)
    with shown_progress() as progress:
        result = collectionlora.prompts(folder, choose(vlm, model, api_key_env), layer, progress)
    lines = [f"{name}: {prompt}" for name, prompt in result["student_prompts"].items()]
    following = f"next: {command('targets', folder)}"
    if any(NO_PAIRS in note for note in result["notes"].values()):
        following += ", then prompts again: the model can look at the targets then"
    say(as_json, result, "\n".join(lines), prompt_table(result), following)


def targets(folder: Folder, overrides: Set = None, recipe: RecipeName = None, as_json: Json = False) -> None:
    """Sample every teacher on its effect's photos, once; a repeated command goes on.

    Example: collectionlora targets my-collection --set targets.samples=4
    """
    from collectionlora.collection import Collection

    layer = parse_overrides(overrides or [])
    with joined_processes() as progress:
        collection = Collection.load(folder).with_recipe(recipe)
        counts = collectionlora.targets(collection, layer, progress=progress)
    # Without a warm start nothing reads the base's answers, so there are none.
    lines = [f"{name}: {count} targets" for name, count in counts.items() if count]
    say(as_json, counts, "\n".join([*lines, f"next: {command('distill', folder)}"]))


def plan(
    folder: Annotated[Path | None, typer.Argument(help="a collection's folder; or give --base")] = None,
    base: Annotated[str | None, typer.Option(help="a base, without a collection")] = None,
    effects: Annotated[
        int | None, typer.Option(min=1, help="number of effects; default: the collection's, or 50")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="rank of student and critic")] = None,
    teacher_rank: Annotated[
        int | None, typer.Option(min=1, help="rank of all teachers; default: their files' or the student's")
    ] = None,
    photos: Annotated[
        int | None, typer.Option(min=1, help="photos of each effect; default: those in its folder, or 20")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="methods of bench, separated by commas")
    ] = "source,teacher,student",
    devices: Annotated[int, typer.Option(min=1, help="number of GPUs of all hosts")] = 1,
    hosts: Annotated[int, typer.Option(min=1, help="number of machines")] = 1,
    sharding: Annotated[
        str | None,
        typer.Option(help="ddp: each GPU holds all, as with model.sharding=none; fsdp: its share"),
    ] = None,
    seconds_per_forward: Annotated[
        float | None, typer.Option(min=0, help="seconds on your GPU for one image; default: an estimate")
    ] = None,
    overrides: Set = None,
    recipe: RecipeName = None,
    as_json: Json = False,
) -> None:
    """Show memory, disk and time of every command before anything is loaded, and which GPUs suffice.

    Example: collectionlora plan --base Qwen/Qwen-Image-Edit-2509 --effects 50 --rank 128
    """
    from collectionlora.collection import Collection
    from collectionlora.planning import plan as planning
    from collectionlora.planning.advice import advise
    from collectionlora.planning.workload import make_workload

    workload = make_workload(
        folder and Collection.load(folder).with_recipe(recipe),
        base,
        effects,
        rank,
        parse_overrides(overrides or []),
        recipe=recipe or "default",
        photos=photos,
        teacher_rank=teacher_rank,
        methods=[name.strip() for name in methods.split(",")],
        devices=devices,
        hosts=hosts,
        sharding=sharding,
    )
    planned = planning.plan(workload, seconds_per_forward=seconds_per_forward)
    result = {**planned, "advice": advise(workload)}
    following = command("check", folder) if folder else command("init", "my-collection", "--base", base)
    lines = [advice_lines(result), f"next: {following}"]
    tables = plan_table(workload.base, result), verbs_table(result)
    say(as_json, result, *tables, "\n".join(filter(None, lines)))


def distill(
    folder: Folder,
    run: Annotated[str, typer.Option(help="name of the run's folder under runs/")] = "default",
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="start over; the earlier run and adapter are kept")
    ] = False,
    overrides: Set = None,
    recipe: RecipeName = None,
    as_json: Json = False,
) -> None:
    """Distil all effects into one LoRA, collection.safetensors.

    Example: collectionlora distill my-collection --set distill.student_updates=1000
    """
    from collectionlora.collection import Collection
    from collectionlora.runs.verbs import warn_of_no_run

    layer = parse_overrides(overrides or [])
    try:
        with joined_processes() as progress:
            collection = Collection.load(folder).with_recipe(recipe)
            if resume:
                warn_of_no_run(collection, run)
            path = collectionlora.distill(collection, run, layer, resume, again, progress)
    except Interrupted as stopped:
        given = [*repeat("--set", overrides), *repeat("--recipe", [recipe] if recipe else [])]
        tell(f"{stopped}; go on with: {command('distill', folder, '--run', run, '--resume', *given)}")
        raise typer.Exit(130) from None
    say(
        as_json,
        {"adapter": str(path)},
        f"the adapter is {path}; next: {command('edit', folder, 'PHOTO', '--effect', 'all')}",
    )


def settings(folder: Folder, overrides: Set = None, recipe: RecipeName = None, as_json: Json = False) -> None:
    """Show every setting that a run would use, and where its value comes from.

    Example: collectionlora settings my-collection --set distill.batch_size=2
    """
    from collectionlora.collection import Collection
    from collectionlora.command_line.tracing import trace_settings
    from collectionlora.runs.session import resolve_settings, setting_layers

    collection, layer = Collection.load(folder).with_recipe(recipe), parse_overrides(overrides or [])
    resolve_settings(collection, layer)
    traced = trace_settings(setting_layers(collection, layer))
    result = {one.name: {"value": one.value, "from": one.layer} for one in traced}
    say(as_json, result, settings_table(traced), f"next: {command('plan', folder)}")
