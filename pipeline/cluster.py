"""What a running Dask cluster must have in common with this process, checked before work starts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import storage
from datasets.errors import EnvironmentFailed, UserError, first_line
from datasets.manifest import sha256_file
from datasets.storage_errors import translating_errors
from pipeline.job import environment, software

if TYPE_CHECKING:
    from distributed import Client

WAIT_FOR_WORKERS_S = 600  # a new node of Kubernetes takes minutes to come
SAY_FIRST_S, SAY_EVERY_S = 2, 30


def check_cluster(
    client: Client, scheduler: str, shared: Path | None, say: Callable[..., None]
) -> None:
    """Waits for the first worker, and looks at all that are there. Those that come later are looked
    at by the tasks they run.

    shared: A file that every worker must see as this process does.
    Raises: UserError if scheduler or worker have other versions or compute other pixels;
      EnvironmentFailed if no worker comes, or one does not see the file.
    """
    where = f"--scheduler {scheduler}"
    try:
        found = client.run_on_scheduler(software)
    except OSError:  # it is gone
        raise
    except Exception as err:  # whatever it meets while it imports what we are
        raise UserError(f"{where}: the scheduler {cannot_run(err)}") from err
    refuse_other(f"{where}: the scheduler", found, software())
    wait_for_worker(client, scheduler, shared, say)
    _, expected = look(shared)
    for address, answer in client.run(look, shared, on_error="return").items():
        worker = f"{where}: worker {address}"
        if isinstance(answer, OSError):  # gone since; its tasks go on elsewhere
            continue
        if isinstance(answer, Exception):
            raise UserError(f"{worker} {cannot_run(answer)}") from answer
        found, content = answer
        refuse_other(worker, found, environment())
        if content != expected:
            raise EnvironmentFailed(
                f"{worker} does not see {shared} as it is here; {how_to_share(shared)}"
            )


def how_to_share(place: Path | None) -> str:
    """What to do where a worker does not see what this process does."""
    if place is not None and storage.is_object(place):
        return "give the workers the storage's address and credentials in their environment"
    return "keep data set and --out on storage that all workers share, under the same path"


def look(shared: Path | None) -> tuple[dict[str, str], tuple[int, str] | None]:
    """What the process that runs this has, and the size and sha256 of the file."""
    try:
        with translating_errors(shared or ""):
            return environment(), None if shared is None else sha256_file(shared)
    except (OSError, EnvironmentFailed):
        return environment(), None


def cannot_run(err: Exception) -> str:
    return (
        f"cannot run this package ({first_line(err)}); install the same version of it, and of the "
        "packages it needs, as here"
    )


def refuse_other(what: str, found: dict[str, str], expected: dict[str, str]) -> None:
    """Raises: UserError that names what differs."""
    different = [
        f"{name} {found.get(name, 'missing')}, here it is {version}"
        for name, version in expected.items()
        if found.get(name) != version
    ]
    if different:
        raise UserError(
            f"{what} has {'; '.join(different)}; use the same versions and processor features on "
            "all, or the bytes would differ"
        )


def wait_for_worker(
    client: Client, scheduler: str, shared: Path | None, say: Callable[..., None]
) -> None:
    """Returns once a worker has done a task. An adaptive cluster begins without workers, and starts
    some only for a task that waits.

    Raises: EnvironmentFailed if none comes in time.
    """
    from distributed import wait

    first: Any = client.submit(look, shared, pure=False)
    ends = (*range(SAY_FIRST_S, WAIT_FOR_WORKERS_S, SAY_EVERY_S), WAIT_FOR_WORKERS_S)
    for before, end in pairwise((0, *ends)):
        try:
            wait(first, timeout=end - before)
            return
        except TimeoutError:
            say_no_worker(scheduler, say)
    raise EnvironmentFailed(
        f"--scheduler {scheduler}: no worker came in {WAIT_FOR_WORKERS_S} s; start some with "
        f"`dask worker {scheduler}`"
    )


def say_no_worker(scheduler: str, say: Callable[..., None]) -> None:
    say(f"--scheduler {scheduler}: has no worker; waiting for one", event="no worker")
