"""The paper's tables on the nano base, one command each; an interrupted one goes on by the same command.

    torchrun --nproc-per-node 2 -- scripts/nano/table.py TABLE --data DATA --out DIR [--set NAME=VALUE]
    python scripts/results_table.py DIR/metrics.json

Two processes of one thread are faster than one of two; `python scripts/nano/table.py` works as well. Without
the two dashes torchrun reads options such as `--start` as its own.
`TABLE --help` says what a table shows and what it can be given.
"""

import argparse

from tables import (
    ablation,
    averages,
    composition,
    deployment,
    fifty,
    incremental,
    main_table,
    noise,
    quantised,
    scaling,
    starts,
    tuning,
)

from collectionlora.command_line.progress import joined_processes
from collectionlora.command_line.terminal import faults_in_a_line

TABLES = {
    "main": main_table,
    "ablation": ablation,
    "fifty": fifty,
    "scaling": scaling,
    "starts": starts,
    "tuning": tuning,
    "averages": averages,
    "noise": noise,
    "quantised": quantised,
    "incremental": incremental,
    "composition": composition,
    "deployment": deployment,
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="table", required=True)
    for name, table in TABLES.items():
        text = table.__doc__ or ""
        command = commands.add_parser(
            name, help=text.splitlines()[0], description=text, formatter_class=formatter
        )
        table.options(command)
    args = parser.parse_args()
    with faults_in_a_line(), joined_processes() as progress:
        TABLES[args.table].make(args, progress)


if __name__ == "__main__":
    main()
