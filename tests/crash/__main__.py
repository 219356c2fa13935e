"""Kills programs of the library, starts them again, and compares what they have made:

    python -m tests.crash --kills=50

Each of the programs is killed so many times: before a file operation, or at a random time near one
(which is how the arrays of checkpoints are met, since compiled code writes them). A few kills later
the same command runs to its end, and all that it has made must be what an uninterrupted run makes.
The exit status is 1 if it was not.
"""

import argparse
import logging
import pathlib
import random
import shutil
import sys
import tempfile

from tqdm import tqdm

from .programs import PROGRAMS
from .sessions import Attack

IN_A_ROW = 4  # kills at most, before what was made is compared


def main() -> int:
    """Runs the test; returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m tests.crash", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [program.name for program in PROGRAMS]
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each program")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="N")
    parser.add_argument("--programs", default=",".join(names), help="some of the programs")
    options = parser.parse_args()
    asked = options.programs.split(",")
    if unknown := set(asked) - set(names):
        parser.error(
            f"{', '.join(unknown)}: there is no such program; choose of {', '.join(names)}"
        )
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's words about its own files
    folder = pathlib.Path(tempfile.mkdtemp(prefix="crash"))
    print(f"seed {options.seed}, in {folder}")
    attacks, rng = [], random.Random(options.seed)
    with tqdm(total=options.kills * len(asked), unit="kill", dynamic_ncols=True) as progress:
        for program in (program for program in PROGRAMS if program.name in asked):
            progress.set_description(program.name)
            attacks.append(Attack(program, folder / program.name.replace(" ", "_"), options.seed))
            attacks[-1].begin()
            while left := options.kills - attacks[-1].kills:
                attacks[-1].session(min(left, rng.randint(1, IN_A_ROW)), progress.update)
    print(table(attacks))
    faults = [fault for attack in attacks for fault in attack.faults]
    for fault in faults:
        print(f"\n{fault.program}: {fault.what}; see {fault.log}, after")
        print("\n".join(f"    {kill}" for kill in fault.kills))
    if not faults:
        shutil.rmtree(folder)
    return int(bool(faults))


def table(attacks: list[Attack]) -> str:
    """A row for each program and kind of kill, and what was left behind."""
    lines = [f"{'program':14} {'killed by':36} {'kills':>6} {'identical':>9} {'leaving':>8}"]
    for attack in attacks:
        for kind, row in attack.rows.items():
            cells = f"{row.kills:>6} {row.kills - row.lost:>9} {row.stale:>8}"
            lines.append(f"{attack.program.name:14} {kind!s:36} {cells}")
        lines.append(
            f"{attack.program.name:14} {attack.kills} restarts, {attack.sessions} ends compared"
        )
        lines += [
            f"    left or incomplete, {n} times: {name}" for name, n in attack.stale.most_common(9)
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
