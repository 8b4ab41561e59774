"""What lies in `--out` of a training: whether it may go on there, begin there, or must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets.commit import is_replaced, partial_folders
from datasets.errors import OutputError
from datasets.schema import as_utf8, canonical_json
from datasets.storage import write_atomically
from pipeline.job import differences
from trainers.changes import changed_options
from trainers.config import ARITHMETIC, TrainConfig, identity, origin
from trainers.data import Data
from trainers.evaluate import CONFIG, MODEL_H5
from trainers.fit import STATE
from trainers.results import is_whole


def put_back(out: Path) -> None:
    """Gives a run its place again that `train_beside` was killed replacing."""
    for path in partial_folders(out):
        if is_replaced(path) and not out.exists():
            path.rename(out)


def make_folder(out: Path) -> None:
    """Makes a run folder, which this process holds, or clears it of what a killed run left.

    Raises: OutputError if it is a file.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()


def prepare_run(config: TrainConfig, data: Data) -> bool:
    """Makes the run folder, or finds it; whether epochs of this run are done there.

    Raises: OutputError if the folder holds anything else, or --resume is missing.
    """
    out, known = config.out, identity(config, data)
    make_folder(out)
    is_new = not any(out.iterdir())
    earlier, found_at = [], origin(config)
    if not is_new:
        stored = stored_run(config)
        refuse_another_run(config, stored, known)
        earlier = stored["earlier"]
        if is_whole(out):
            known = stored["run"]
        elif stored["run"] != as_json(known):  # it went on with other arithmetic: said for ever
            earlier = [*earlier, stored["run"]]
        began_by = stored["origin"].get("command")
        found_at["command"] = began_by or found_at["command"]
    stored = {"run": known, "origin": found_at, "earlier": earlier}
    write_atomically(out / CONFIG, as_utf8(canonical_json(stored)))
    return not is_new and (out / STATE).is_file()


def refuse_foreign(config: TrainConfig) -> None:
    """Before data are read. Raises: OutputError if the folder holds something else than a run."""
    out = config.out
    if out.is_dir() and not all(path.name.startswith(".") for path in out.iterdir()):
        stored_run(config)


def is_in_the_way(config: TrainConfig, data: Data) -> bool:
    """Whether a run lies in the folder that this one cannot go on with.

    Raises: OutputError if it is something else, which nobody replaces.
    """
    make_folder(config.out)
    if not any(config.out.iterdir()):
        return False
    stored = stored_run(config)
    try:
        refuse_another_run(config, stored, identity(config, data))
    except OutputError:
        return True
    return False


def is_done(config: TrainConfig, data: Data) -> bool:
    """Whether this run was finished, if by other threads or libraries, and all asked for is there.

    Raises: OutputError if another run was.
    """
    if not config.resume or not is_whole(config.out):
        return False
    stored, known = stored_run(config), identity(config, data)
    refuse_another_run(config, stored, known)
    has_h5 = (config.out / MODEL_H5).is_file() or not config.save_h5
    return has_h5 or stored["run"] != as_json(known)


def stored_run(config: TrainConfig) -> dict[str, Any]:
    """What the run folder says of its run, as `prepare_run` wrote it.

    Raises: OutputError if it is none.
    """
    path = config.out / CONFIG
    if not path.is_file():
        raise OutputError(
            f"{config.out}: exists and is not a run of `pipeline train`; choose another --out"
        )
    try:
        found = json.loads(path.read_text())
        run, origin, earlier = dict(found["run"]), dict(found["origin"]), list(found["earlier"])
        return {"run": run, "origin": origin, "earlier": earlier}
    except (ValueError, LookupError, TypeError):
        raise OutputError(f"{path}: is of something else; choose another --out") from None


def refuse_another_run(config: TrainConfig, stored: dict[str, Any], known: dict[str, Any]) -> None:
    """Raises: OutputError, with what differs, if the run there cannot go on as the one wanted."""
    out, wanted = config.out, {"run": as_json(known), "origin": origin(config)}
    before, now = (
        found | {"run": {k: v for k, v in found["run"].items() if k not in ARITHMETIC}}
        for found in (stored, wanted)
    )
    if differences(before["run"], now["run"]):
        raise OutputError(
            f"{out}: is another run ({changed_options(before, now)}); choose another --out, or "
            "give `pipeline train` --overwrite to replace it once this one is finished"
        )
    if not config.resume:
        raise OutputError(f"{out}: holds this run; go on with --resume, or choose another --out")
    is_other = bool(differences(stored["run"], wanted["run"]))
    if is_other and not config.inexact and not is_whole(out):
        raise OutputError(
            f"{out}: would not end with the same weights ({changed_options(stored, wanted)}); make "
            "it equal, or give --inexact to go on all the same"
        )


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(canonical_json(value)))


def begin_whole(config: TrainConfig, file: str, parts: Any, what: str) -> None:
    """Makes the folder of several runs, each in a folder inside, or finds it.

    file: What tells it from others; parts: what that says of it.
    Raises: OutputError if the folder holds anything else, or --resume is missing.
    """
    refuse_another_whole(config, file, parts, what)
    write_atomically(config.out / file, as_utf8(canonical_json(parts)))


def refuse_another_whole(config: TrainConfig, file: str, parts: Any, what: str) -> None:
    """Raises: OutputError if the folder holds anything else, or --resume is missing."""
    out, listed = config.out, canonical_json(parts)
    make_folder(out)
    if any(out.iterdir()) and not (out / file).is_file():
        raise OutputError(f"{out}: exists and is no {what}; choose another --out")
    if (out / file).is_file() and (out / file).read_bytes() != as_utf8(listed):
        raise OutputError(f"{out}: is another {what}; choose another --out")
    if (out / file).is_file() and not config.resume:
        raise OutputError(f"{out}: holds this {what}; go on with --resume, or choose another --out")
