"""Where an output may stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datasets import storage
from datasets.catalog import CATALOG, open_source
from datasets.commit import partial_folder
from datasets.errors import UserError
from pipeline.default_out import default_out

if TYPE_CHECKING:
    from pipeline.plan import AugmentConfig


def output_folder(config: AugmentConfig) -> Path:
    """Where the output goes: an absolute path without links, which need not exist.

    Raises: UserError if that is no place for it.
    """
    source = open_source(config.dataset, config.data_dir)
    out = config.out or default_out("augment", source.name)
    if storage.is_object(out):
        refuse_nested_objects(out, config.dataset)
        return out
    out = out.expanduser().resolve()
    if out == Path.cwd() or out == Path(out.anchor):
        raise UserError(f"--out {config.out}: expected a folder to make, such as augmented/photos")
    try:  # the longest name beside it
        partial_folder(out, "0" * 16).exists()
    except OSError as err:
        raise UserError(f"--out {out}: {err.strerror}; choose another place or name") from err
    above = next(folder for folder in out.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file, and no folder; choose another place")
    refuse_nesting(out, config.dataset)
    return out


def refuse_nesting(out: Path, dataset: str) -> None:
    """Raises: UserError if the output would lie in the folder of its own data, or around it."""
    data = Path(dataset).expanduser().resolve()
    if dataset not in CATALOG and data.is_dir():
        if out.is_relative_to(data):
            raise UserError(f"--out {out}: lies inside the data set {data}; choose a place outside")
        if data.is_relative_to(out):
            raise UserError(f"--out {out}: the data set {data} lies inside; choose another place")


def refuse_nested_objects(out: Path, dataset: str) -> None:
    """The same for object storage. A whole bucket is no place for an output either."""
    inner, outer = f"{out}/", f"{dataset.rstrip('/')}/"
    if inner.startswith(outer) or outer.startswith(inner):
        raise UserError(
            f"--out {out}: lies inside the data set, or around it; choose another place"
        )
    if set("*?[]") & set(str(out)):
        raise UserError(
            f"--out {out}: expected a name without * ? [ ], which storages take for more"
        )
    if "/" not in storage.key(out).strip("/"):
        raise UserError(
            f"--out {out}: expected a place in the bucket, such as {str(out).rstrip('/')}/photos"
        )
