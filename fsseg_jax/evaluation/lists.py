"""Writes the test episodes of a protocol as lists: python -m fsseg_jax.evaluation.lists --out=DIR

Episodes of published codes depend on the order of files and on old random number generators; these
depend on the annotations of the data set alone, on any machine. Writes a CSV file for each fold and
run, which `--config.eval.episodes_file` reads, and lists.json with their hashes and the settings:

    python -m fsseg_jax.evaluation.lists --out=lists --config.data.name=coco \\
        --config.data.root=COCO --config.eval.protocol=hsnet --config.shots=5

--verify=True draws the episodes again and compares them with those in --out instead of writing
them; the exit status is 1 if any differ.
"""

import json
import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.config import default_config, load_config, override
from fsseg_jax.data import open_source, test_split
from fsseg_jax.data.source import Source
from fsseg_jax.episode import EpisodeIds, episodes_hash, episodes_to_csv
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.protocol import SAMPLING, protocol_episodes
from fsseg_jax.files import write_text

# As a program, the module has another name.
logger = logging.getLogger("fsseg_jax.evaluation.lists")


def draw(config: ConfigDict, source: Source) -> dict[str, EpisodeIds]:
    """The episodes of every fold and run, by file name."""
    lists = {}
    for fold in range(len(source.folds)):
        config.data.fold = fold
        for seed, episodes in protocol_episodes(config, source).items():
            words = [source.name, config.eval.protocol or "default", f"fold{fold}"]
            words += [f"{config.ways}way", f"{config.shots}shot", f"seed{seed}"]
            lists[f"{'_'.join(words)}.csv"] = episodes
    return lists


def describe(config: ConfigDict, source: Source, lists: dict[str, EpisodeIds]) -> dict[str, Any]:
    """The contents of lists.json: the settings of the lists, and the hash of each."""
    return {
        "data": f"{source.name}, {source.digest()}",
        "photographs": f"{test_split(config.data)}, {len(source)}",
        "protocol": config.eval.protocol,
        "episodes": SAMPLING[config.eval.sampling],
        "min_pixels": config.data.min_pixels,
        "lists": {name: episodes_hash(ids, source.ids) for name, ids in lists.items()},
    }


def differing(folder: pathlib.Path, described: dict[str, Any]) -> list[str]:
    """The differences between the lists in a folder and their expected description.

    Raises:
        UserError: lists.json is missing or broken.
    """
    path = folder / "lists.json"
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        known = json.loads(path.read_text())
        hashes = known["lists"]
        if not isinstance(hashes, dict):
            raise ValueError("its lists are none")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): write the lists there first.") from None
    sentences = [
        f"{name}: {known.get(name)} in {path}, but {value} here"
        for name, value in described.items()
        if name != "lists" and known.get(name) != value
    ]
    for name in sorted({*hashes, *described["lists"]}):
        there, here = hashes.get(name), described["lists"].get(name)
        if there != here:
            sentences.append(f"{name}: hash {there} in {path}, but {here} here")
    return sentences


def main() -> int:
    """Runs the program; returns its exit status."""
    arguments, overrides = command_line.parse(
        __doc__,
        workdir=False,
        out={**command_line.FOLDER, "required": True, "help": "the folder of the lists"},
        verify="True compares existing lists instead of writing them",
    )
    if arguments.verify not in (None, "True", "False"):
        raise UserError(f"--verify={arguments.verify}: choose True or False.")
    config = load_config(arguments.config) if arguments.config else default_config()
    config = override(config, overrides)
    if config.eval.episodes_file:
        raise UserError("eval.episodes_file: lists are drawn here; leave it empty.")
    if config.eval.setup != "one_of_ways":
        raise UserError(
            f"eval.setup = {config.eval.setup} is for one fold, but lists are for all folds: set "
            "eval.setup = one_of_ways."
        )
    source = open_source(config.data, "test")
    lists = draw(config, source)
    described = describe(config, source, lists)
    if arguments.verify == "True":
        sentences = differing(arguments.out, described)
        for name, episodes in lists.items():
            path = arguments.out / name
            expected = episodes_to_csv(episodes, source.ids).encode()
            if not path.is_file() or path.read_bytes() != expected:
                sentences.append(f"{path}: missing, or different from what is drawn here")
        print("\n".join(sentences) or f"{len(lists)} lists are as expected")
        return 1 if sentences else 0
    for name, episodes in lists.items():
        write_text(arguments.out / name, episodes_to_csv(episodes, source.ids))
        print(f"{described['lists'][name]} {len(episodes):6d} {name}")
    path = arguments.out / "lists.json"
    write_text(path, json.dumps(described, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command_line.run(main)
