"""The verbs that use and judge a finished collection."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import collectionlora
from collectionlora.command_line.completion import complete_effects
from collectionlora.command_line.options import (
    Folder,
    Json,
    Quantization,
    Set,
    VlmKey,
    VlmTokens,
    with_token_cap,
)
from collectionlora.command_line.progress import joined_processes, shown_progress
from collectionlora.command_line.terminal import (
    command,
    effects_table,
    methods_table,
    say,
)
from collectionlora.config import parse_overrides
from collectionlora.system.errors import UserError, one_line

if TYPE_CHECKING:
    from collectionlora.command_line.edited_files import EditedFiles


def edit(
    collection: Annotated[Path, typer.Argument(help="a folder, an adapter file, or nano, which ships")],
    effect: Annotated[
        str,
        typer.Option(help="an effect, or all for a result of each", autocompletion=complete_effects),
    ],
    photo_argument: Annotated[
        Path | None, typer.Argument(metavar="[PHOTO]", help="a photo, or a folder of photos")
    ] = None,
    then: Annotated[list[str] | None, typer.Option(help="a further effect, in the same prompt")] = None,
    photo: Annotated[Path | None, typer.Option(help="the same as PHOTO")] = None,
    out: Annotated[
        Path | None, typer.Option(help="a file or a folder; default of one photo: PHOTO-EFFECT.png beside it")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace results that exist")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="default: the adapter's own")] = None,
    seed: Annotated[int, typer.Option(help="of the noise; the same seed makes the same picture")] = 0,
    strength: Annotated[float, typer.Option(min=0, max=1, help="0 is the photo, 1 the whole effect")] = 1.0,
    size: Annotated[
        str | None,
        typer.Option(help="pixels that the network works with: 128, or 160x96; default: as it was taught"),
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="a reference image; as many as the effect was taught with")
    ] = None,
    quantization: Quantization = None,
    as_json: Json = False,
) -> None:
    """Edit one photo, or all photos of a folder. Photos and existing files are never replaced unasked.

    Example: collectionlora edit my-collection me.jpg --effect neon-edges
    """
    from collectionlora.command_line.edited_files import edit_files
    from collectionlora.pictures.sizes import parse_size
    from collectionlora.planning.guard import refuse_too_large_adapter

    source, pixels = choose_photo(photo_argument, photo), parse_size(size) if size else None
    # The plan of a large base takes a while: only when nothing else is wrong.
    compare = partial(refuse_too_large_adapter, "edit", collection, pixels, quantization)
    with shown_progress() as progress:
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
            pixels,
            quantization,
            progress,
            compare,
        )
    following = [] if edited.failed else [f"next: {command('studio', collection)}"]
    say(as_json, edited.as_dict(), *edited_lines(edited), *following)
    if edited.failed:
        raise typer.Exit(2)


def edited_lines(edited: "EditedFiles") -> list[str]:
    """What an edit did, a line for each file."""
    lines = [f"wrote {one_line(str(path))}" for path in edited.written]
    if edited.skipped:
        lines.append(f"{len(edited.skipped)} results exist already; --overwrite makes them again")
    return lines + [f"error: {fault}" for fault in edited.failed]


def choose_photo(argument: Path | None, option: Path | None) -> Path:
    """The photo that is named once, as an argument or as an option.

    Raises:
        UserError: it is missing, or given twice.
    """
    if argument and option:
        raise UserError("", "PHOTO", "is given twice", "give one photo, or one folder of photos")
    if found := argument or option:
        return found
    raise UserError("", "PHOTO", "is missing", "give one photo, or one folder of photos")


def export(
    collection: Annotated[Path, typer.Argument(help="a folder, or an adapter file")],
    format: Annotated[str, typer.Option(help="diffusers, peft, comfyui or lightx2v")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    rank: Annotated[int | None, typer.Option(min=1, help="reduce to this rank by singular values")] = None,
    preview: Annotated[
        list[Path] | None, typer.Option(help="an image for the model card, named after its effect")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that exist")] = False,
    as_json: Json = False,
) -> None:
    """Write the finished adapter for diffusers, PEFT or ComfyUI, with a model card and an example.

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
    lines.append(f"next: read {out}/README.md")
    say(as_json, result, "\n".join(lines))


def bench(
    folder: Folder,
    photos: Annotated[
        Path | None,
        typer.Option(
            help="held-out photographs; by default, for nano alone: three that ship with Python packages"
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="names, separated by commas")] = "source,teacher,student",
    crops: Annotated[int, typer.Option(min=1, help="photos of each effect and seed")] = 24,
    seeds: Annotated[int, typer.Option(min=1, help="number of seeds; each has pictures of its own")] = 1,
    judge: Annotated[
        str | None,
        typer.Option(help="an OpenAI-compatible endpoint that judges, or base for the base's own encoder"),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="the endpoint's model")] = None,
    api_key_env: VlmKey = None,
    max_tokens_total: VlmTokens = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="an earlier metrics.json: fail if a kept effect lost more than --margin"),
    ] = None,
    margin: Annotated[float, typer.Option(min=0, help="dB of PSNR that an effect may lose")] = 1.0,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Compare methods on held-out photographs and write a report; a repeated command goes on.

    Methods: source, truth, teacher, teacher-8 (undistilled, few steps),
    student, student-4, stack, flow-matching, merge-linear, merge-ties,
    merge-dare, merge-svd, or the name of a run.

    Example: collectionlora bench my-collection --methods teacher,student,student-4,stack
    Example: collectionlora bench my-collection --baseline before.json --margin 0.5
    """
    from collectionlora.prompting.own_encoder import choose

    layer = with_token_cap(parse_overrides(overrides or []), max_tokens_total)
    model = choose(judge, judge_model, api_key_env, "--judge")
    with joined_processes() as progress:
        metrics = collectionlora.bench(
            folder,
            photos,
            [name.strip() for name in methods.split(",")],
            crops,
            seeds,
            layer,
            judge=model,
            baseline=baseline,
            margin=margin,
            progress=progress,
        )
    passed = "the gate passed: the worst change is {:+.2f} dB, of {worst_effect}"
    gate = [passed.format(0 - metrics["gate"]["worst_loss"], **metrics["gate"])] if "gate" in metrics else []
    look = f"look at {folder}/bench/sheet.png, read {folder}/bench/report.html"
    following = f"next: {command('export', folder, '--format', 'diffusers', '--out', f'{folder}-lora')}"
    say(as_json, metrics, methods_table(metrics), *gate, look, following)


def effects(
    collection: Annotated[Path, typer.Argument(help="a folder, an adapter file, or nano, which ships")],
    as_json: Json = False,
) -> None:
    """List the effects of a finished collection, with the student prompt of each.

    Example: collectionlora effects my-collection
    """
    from collectionlora.adapters.recipe import adapter_path, read_recipe

    held = read_recipe(adapter_path(collection)).effects
    following = f"next: {command('edit', collection, 'PHOTO', '--effect', next(iter(held)))}"
    say(as_json, held, effects_table(held), following)
