"""Get the photographs and cut-outs that the nano base is trained on, from Debian packages.

Run `python scripts/nano/photographs.py --out DIR`. Packages are downloaded with `apt-get download` into a
temporary folder and unpacked there; nothing is installed. What it leaves in DIR:

    photographs/{train,heldout}/NAME.jpg           short side at most 768 pixels
    cutouts/{train,heldout}/CATEGORY/NAME.png      RGBA, trimmed, short side at most 256; PNG text `noun`
    licences.json                                  where each file comes from, its licence, its noun

Whole photographs and whole cut-outs are held out, never crops of one that is trained on. Which ones, and
which files of the packages are photographs at all, was decided by eye: see `PHOTOGRAPHS` and `cutouts.tsv`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

PHOTOGRAPH_SHORT_SIDE = 768
CUTOUT_SHORT_SIDE = 256
STAMPS_PACKAGE = "tuxpaint-stamps-default"
STAMPS_ROOT = "usr/share/tuxpaint/stamps"
CUTOUT_TABLE = Path(__file__).with_name("cutouts.tsv")

# Renders, paintings and patterns of the same packages are left out. All files of one line share a folder:
# (package, path with {} for the name).
LOMIRI = ("lomiri-wallpapers-16.04", "usr/share/backgrounds/{}.jpg")
LOMIRI_2020 = ("lomiri-wallpapers-20.04", "usr/share/backgrounds/{}.jpg")
MATE = ("mate-backgrounds", "usr/share/backgrounds/mate/nature/{}.jpg")
PLASMA = ("plasma-workspace-wallpapers", "usr/share/wallpapers/{}/contents/images/2560x1600.jpg")
PHOTOGRAPHS: dict[tuple[str, str], tuple[str, ...]] = {
    LOMIRI: (
        "Bridge_by_Sander_Klootwijk",
        "Dragonfly_by_Bolly",
        "Picture_0B_by_freespace",
        "Picture_1A_by_freespace",
        "Wine_by_Jakkub_Mede",
        "aitzgorri_by_Aitzol_Berasategi",
        "free_by_Peter_Nerlich",
        "friends_by_Aitzol_Berasategi",
        "greentock_by_Peter_Nerlich",
        "life_by_Aitzol_Berasategi",
        "picosdeeuropa_by_Aitzol_Berasategi",
        "seeding_by_Clements_Engelhardt",
        "sunset_by_Aitzol_Berasategi",
    ),
    LOMIRI_2020: ("Kleiber_by_Lukas_Baubkus",),
    MATE: (
        "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm",
        "TwoWings", "Wood", "YellowFlower",
    ),
    PLASMA: (
        "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey",
        "Kite", "OneStandsOut", "Path", "summer_1am",
    ),
}  # fmt: skip
# One of each kind: a mountain, dogs at a house, boats at dusk, a still life, a close flower, a pattern.
HELDOUT_PHOTOGRAPHS = {
    "aitzgorri_by_Aitzol_Berasategi",
    "friends_by_Aitzol_Berasategi",
    "EveningGlow",
    "Picture_0B_by_freespace",
    "YellowFlower",
    "ColorfulCups",
}


@dataclass(frozen=True)
class Item:
    """One file to make: `path` inside `package` becomes `output` under the output folder."""

    package: str
    path: str
    output: Path
    noun: str | None = None  # of a cut-out


def list_items() -> list[Item]:
    """Every photograph and every cut-out, in a fixed order."""
    items = []
    for (package, pattern), names in PHOTOGRAPHS.items():
        for name in names:
            split = "heldout" if name in HELDOUT_PHOTOGRAPHS else "train"
            items.append(Item(package, pattern.format(name), Path("photographs", split, f"{name}.jpg")))
    for line in CUTOUT_TABLE.read_text().splitlines():
        if not line.startswith("#"):
            split, category, noun, stamp = line.split("\t")
            output = Path("cutouts", split, category, f"{Path(stamp).name}.png")
            items.append(Item(STAMPS_PACKAGE, f"{STAMPS_ROOT}/{stamp}.png", output, noun))
    return items


def unpack_package(package: str, folder: Path) -> tuple[Path, str]:
    """Download `package` and unpack it below `folder`; return the unpacked root and the package's version."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (deb,) = folder.glob(f"{package}_*.deb")
    root = folder / package
    subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
    version = subprocess.check_output(["dpkg-deb", "-f", str(deb), "Version"], text=True)
    deb.unlink()
    return root, version.strip()


def fit_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Shrink `image` so that its short side is at most `short_side`; smaller images stay as they are."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    width, height = (round(side * scale) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def write_photograph(source: Path, output: Path) -> None:
    """Write `source` as a JPEG."""
    with Image.open(source) as image:
        fit_short_side(image.convert("RGB"), PHOTOGRAPH_SHORT_SIDE).save(output, quality=92)


def write_cutout(source: Path, output: Path, noun: str) -> None:
    """Write `source` as an RGBA PNG, trimmed to where it is visible, with its noun in the PNG text."""
    with Image.open(source) as image:
        cutout = image.convert("RGBA")
    # Faint halos far from the subject would widen the box: only what is visible counts.
    box = cutout.getchannel("A").point([0] * 16 + [255] * 240).getbbox()
    text = PngInfo()
    text.add_text("noun", noun)
    fit_short_side(cutout.crop(box), CUTOUT_SHORT_SIDE).save(output, pnginfo=text)


def read_copyright(path: Path) -> list[dict[str, str]]:
    """The paragraphs of a machine-readable Debian copyright file, as field -> text."""
    paragraphs: list[dict[str, str]] = [{}]
    field = ""
    for line in path.read_text().splitlines():
        if not line.strip():
            paragraphs.append({})
        elif line[0].isspace():
            paragraphs[-1][field] = f"{paragraphs[-1].get(field, '')} {line.strip()}".strip()
        else:
            field, _, value = line.partition(":")
            paragraphs[-1][field] = value.strip()
    return [paragraph for paragraph in paragraphs if paragraph]


def describe_licence(paragraphs: list[dict[str, str]], path: str) -> dict[str, str]:
    """The copyright holder and licence of one file: the last paragraph whose pattern fits."""
    found = {}
    for paragraph in paragraphs:
        for pattern in paragraph.get("Files", "").split():
            if pattern == "*" or path.endswith("/" + pattern.split("/")[-1]):
                found = {"copyright": paragraph["Copyright"], "licence": paragraph["License"].split()[0]}
    return found


def describe_wallpaper(source: Path) -> dict[str, str]:
    """The author and licence that a Plasma wallpaper states in its own metadata."""
    plugin = json.loads((source.parents[2] / "metadata.json").read_text())["KPlugin"]
    authors = ", ".join(author["Name"] for author in plugin["Authors"])
    return {"author": authors, "licence_in_metadata": plugin["License"]}


def make_package(package: str, items: Sequence[Item], out: Path) -> dict[str, Any]:
    """Write the items of one package below `out`; return the package's entry for `licences.json`."""
    with tempfile.TemporaryDirectory() as folder:
        root, version = unpack_package(package, Path(folder))
        paragraphs = read_copyright(root / "usr/share/doc" / package / "copyright")
        files = {}
        for item in items:
            source, output = root / item.path, out / item.output
            if not source.exists():
                raise FileNotFoundError(f"{package} {version} holds no {item.path}.")
            output.parent.mkdir(parents=True, exist_ok=True)
            entry = {"path": item.path, **describe_licence(paragraphs, item.path)}
            if item.noun is None:
                write_photograph(source, output)
            else:
                write_cutout(source, output, item.noun)
                entry["noun"] = item.noun
            if package == PLASMA[0]:
                entry |= describe_wallpaper(source)
            files[str(item.output)] = entry
    licences = sorted({entry["licence"] for entry in files.values()})
    return {"version": version, "source": paragraphs[0]["Source"], "licences": licences, "files": files}


def make_all(out: Path) -> None:
    """Fill `out`; packages whose files are all there are skipped."""
    items = list_items()
    record = out / "licences.json"
    licences = json.loads(record.read_text()) if record.exists() else {}
    for package in dict.fromkeys(item.package for item in items):
        mine = [item for item in items if item.package == package]
        if package not in licences or not all((out / item.output).exists() for item in mine):
            print(f"{package}: {len(mine)} files")
            licences[package] = make_package(package, mine, out)
            record.write_text(json.dumps(licences, indent=1, ensure_ascii=False) + "\n")
    for folder in ("photographs/train", "photographs/heldout", "cutouts/train", "cutouts/heldout"):
        print(f"{folder}: {sum(Path(folder) in item.output.parents for item in items)}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Get the nano base's photographs from Debian packages.")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    arguments = parser.parse_args()
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            sys.exit(f"error: {program} was not found; the photographs come from Debian packages.")
    try:
        make_all(arguments.out)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: `{' '.join(error.cmd)}` failed; an unknown package needs `apt-get update` first.")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
