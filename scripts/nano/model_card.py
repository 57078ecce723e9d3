"""Write the card of the shipped weights from what the runs logged.

python scripts/nano/model_card.py --data DATA --folder RUN --teachers DIR [DIR ...]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collectionlora.backbones.nano import WEIGHTS, NanoBackbone
from collectionlora.effects.ordinary import ORDINARY_EDITS
from collectionlora.system.files import write_text

CARD = """\
# The nano base and its teachers

`nano.safetensors` is the embedded base of collectionlora: an instruction-editing flow-matching transformer of
{parameters:,} parameters on 64 x 64 pixels, of the kind of Qwen-Image-Edit (joint attention over text, source
and noisy tokens), with a text encoder of its own. It exists so that the method can be run, tested and
measured on a laptop; it is not an image editor for production. Weights: Apache-2.0, as the code.

Trained from random weights by `scripts/nano/pretrain.py` for {step:,} steps ({hours:.1f} hours on two CPU
cores) on {kinds} kinds of ordinary edits with a known truth, over crops of photographs and cut-out subjects
from the Debian packages below. Whole photographs and whole cut-outs are held out.

## Held-out quality

Mean PSNR in dB to the true edit, {num} held-out examples of each kind, 16 steps, no guidance.

| group | dB |
|---|---|
{groups}

| kind | group | an instruction | dB |
|---|---|---|---|
{table}

## Teachers

`teachers/NAME.safetensors`, effect LoRAs trained by `scripts/nano/teachers.py` from pairs of crops of the
same training photographs. PSNR is to the nearest valid outcome on held-out photographs; a teacher ships at
22 dB, or 8 dB over the source. Coverage says how evenly the outcomes of a random effect come up.

| effect | PSNR | source | coverage | seconds |
|---|---|---|---|---|
{teachers}

Under the gate, and therefore not here: {refused}.

## Photographs

Only the weights ship, no photograph. Packages, versions and licences (per file: `licences.json`, which
`scripts/nano/photographs.py` writes):

| package | version | files | licences | source |
|---|---|---|---|---|
{packages}
"""

COLLECTION = """
## The collection

`collection.safetensors` holds all fifty effects in one LoRA of rank 64 for 8 steps, taught by these
teachers in `scripts/nano/table.py` (`fifty`, `incremental`). `collectionlora edit nano` and
`collectionlora studio nano` use it. `docs/results.md` says how good it is.
"""


def table(rows: Sequence[Sequence[object]]) -> str:
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def build_card(
    heldout: Mapping[str, Any],
    teachers: Sequence[Mapping[str, Any]],
    refused: Sequence[Mapping[str, Any]],
    licences: Mapping[str, Any],
) -> str:
    """The card as Markdown."""
    backbone = NanoBackbone.load(WEIGHTS)
    kinds = [
        (kind, ORDINARY_EDITS[kind].group, ORDINARY_EDITS[kind].phrasings[0], value)
        for kind, value in heldout["kinds"].items()
    ]
    return CARD.format(
        parameters=sum(p.numel() for p in backbone.modules.parameters()),
        step=heldout["step"],
        hours=heldout["seconds"] / 3600,
        kinds=len(kinds),
        num=heldout["num"],
        groups=table(list(heldout["groups"].items())),
        table=table(kinds),
        teachers=table(
            [(t["effect"], t["psnr"], t["source_psnr"], t["coverage"], t["seconds"]) for t in teachers]
        ),
        refused=", ".join(f"{t['effect']} ({t['psnr']} dB)" for t in refused) or "none",
        packages=table(
            [
                (name, p["version"], len(p["files"]), ", ".join(p["licences"]), p["source"])
                for name, p in licences.items()
            ]
        ),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder made by photographs.py")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the pretraining run")
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="folders made by teachers.py")
    parser.add_argument("--out", type=Path, default=WEIGHTS.with_name("README.md"))
    args = parser.parse_args()
    shipped = {path.stem for path in (WEIGHTS.parent / "teachers").glob("*.safetensors")}
    tries = [row for folder in args.teachers for row in read_lines(folder / "teachers.jsonl")]
    tried = {row["effect"]: row for row in tries}  # of an effect tried again, the last
    teachers = [tried[name] for name in sorted(shipped)]
    refused = [row for name, row in sorted(tried.items()) if name not in shipped and not row["passed"]]
    heldout = read_lines(args.folder / "heldout.jsonl")[-1]
    licences = json.loads((args.data / "licences.json").read_text())
    write_text(args.out, build_card(heldout, teachers, refused, licences) + COLLECTION)


if __name__ == "__main__":
    main()
