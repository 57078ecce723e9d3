"""The paper's tables on the nano base, one command each; an interrupted one goes on by the same command.

    torchrun --nproc-per-node 2 scripts/nano/table.py TABLE --data DATA --out DIR [--set NAME=VALUE]
    python scripts/results_table.py DIR/metrics.json

Two processes of one thread are faster than one of two; `python scripts/nano/table.py` works as well.
`TABLE --help` says what a table shows and what it can be given.
"""

import argparse
import sys

from tables import ablation, composition, deployment, incremental, main_table, scaling

from collectionlora.config import SettingsError
from collectionlora.errors import Interrupted, UserError
from collectionlora.terminal import joined_processes

TABLES = {
    "main": main_table,
    "ablation": ablation,
    "scaling": scaling,
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
    try:
        with joined_processes() as progress:
            TABLES[args.table].make(args, progress)
    except (UserError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
