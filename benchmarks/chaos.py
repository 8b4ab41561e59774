"""Runs of one real job, each with a fault at a random moment, and the same command again after it.

    python benchmarks/chaos.py [RUNS] [--seed SEED] [--only WORD]   200 runs, about 50 minutes

The job writes 320 photos x 5 in 40 shards with two workers: local ones, or a scheduler and two
workers started by hand; from and to a disk, or from and to an S3 server. After the second command
each output must be the undisturbed one byte for byte; a reader that opened it again and again
throughout must have found it absent or whole; no process, no temporary file and nothing else may be
left. A fault that came when the run had ended is repeated. Prints a table of faults and outcomes.

Full disks and read-only folders need root (a mount of one's own); they are left out without it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from faults import ANYWHERE, BY_HAND, LOCAL, OF_STORAGE, WITH_MOUNTS, Fault
from measure import scratch_folder
from offline import make_photos
from reader import polling
from scene import GONE_WITHIN_S, Scene, new_scene
from upath import UPath

from datasets.manifest import VERSION
from datasets.storage import abort_uploads

HANGS_AFTER_S = 180
REPEATS = 3  # of a fault that came too late, each at another moment
SEMAPHORES = Path("/dev/shm")
LATE = "too late"
FINE_CODES = {0, 5, 143, -signal.SIGTERM, -signal.SIGKILL}
STAGES = {"planning": 3, "working": 5, "committing": 2}  # how often a fault comes in each


@dataclass(frozen=True)
class Kind:
    """A fault, and the run that it happens to."""

    by_hand: bool
    is_s3: bool
    name: str
    fault: Fault

    def __str__(self) -> str:
        where = f"{'by hand' if self.by_hand else 'local'}, {'s3' if self.is_s3 else 'disk'}"
        return f"{where:13} {self.name}"


@dataclass(frozen=True)
class Moment:
    """So many seconds after so many shards were finished, or when the next one is."""

    n_shards: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s after {self.n_shards} shards"


@dataclass(frozen=True)
class Usual:
    """An undisturbed run: what it leaves, how long until its first shard is finished, and how long
    from the last one to the end."""

    files: dict[str, str]
    n_shards: int
    first_s: float
    last_s: float

    def any_moment(self, chance: random.Random) -> Moment:
        (stage,) = chance.choices([*STAGES], [*STAGES.values()])
        if stage == "planning":
            return Moment(0, chance.uniform(0.1, self.first_s))
        if stage == "working":
            return Moment(chance.randrange(1, self.n_shards), 0)
        # Early more often than late: the commit is short, most of that is the processes' end.
        return Moment(self.n_shards, chance.random() ** 2 * self.last_s)


def undisturbed(scene: Scene) -> Usual:
    started = time.monotonic()
    run = scene.start_job()
    seen: dict[int, float] = {}  # number of finished shards -> when there were so many
    while run.poll() is None:
        seen.setdefault(scene.n_shards(), time.monotonic())
        time.sleep(0.005)
    code, said = wait(run)
    assert (code, said) == (0, ""), said
    ended, n_shards = time.monotonic(), scene.n_shards()
    first = min(when for n, when in seen.items() if n)
    return Usual(scene.files(), n_shards, first - started, ended - seen.get(n_shards, ended))


def has_come(moment: Moment, scene: Scene) -> bool:
    """Waits for the moment; False where the run has ended before."""
    assert scene.run is not None
    while scene.n_shards() < moment.n_shards and scene.run.poll() is None:
        time.sleep(0.005)
    come = time.monotonic() + moment.seconds
    while time.monotonic() < come and scene.n_shards() <= moment.n_shards:
        if scene.run.poll() is not None:
            break
        time.sleep(0.005)
    return scene.run.poll() is None


def wait(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said; raises AssertionError if it hangs or says more than one line,
    which where it was killed is what Python's own processes say of that."""
    try:
        _, said = run.communicate(timeout=HANGS_AFTER_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still there after {HANGS_AFTER_S} s") from None
    assert "Traceback" not in said, said
    assert run.returncode < 0 or len(said.splitlines()) <= 1, said
    return run.returncode, said.strip()


def disturb(scene: Scene, fault: Fault, moment: Moment) -> tuple[str, bool]:
    """What came of a run with a fault at that moment, that the next one fixes, and whether the
    fault still hit it."""
    run = scene.start_job()
    hit = False
    while not hit and has_come(moment, scene):
        try:
            with fault(scene):
                code, said = wait(run)
            hit = True
        except LookupError:  # until the fault finds what it is to hit
            moment = Moment(0, 0.01)
    if not hit:
        code, said = wait(run)
    assert code in FINE_CODES, f"exit code {code}: {said}"
    scene.scratch |= {path.name for path in (scene.folder / "tmp").glob("pipeline-*")}
    again, said = wait(scene.start_job())
    assert again == 0, f"resumed: exit code {again}: {said}"
    return f"exit code {code}", hit


def check(scene: Scene, expected: dict[str, str]) -> None:
    """That what stands there is the whole output and nothing else, and nothing goes on."""
    found = scene.files()
    differences = sorted(set(found) ^ set(expected))
    assert not differences, f"left or missing: {differences}"
    assert found == expected, f"other bytes: {sorted(n for n in found if found[n] != expected[n])}"
    if scene.front:
        options = scene.front.behind.files().storage_options
        n_uploads = abort_uploads(UPath(scene.out, **options), VERSION)
        assert not n_uploads, f"left: {n_uploads} unfinished uploads"
    _, alive = psutil.wait_procs(scene.processes(), timeout=GONE_WITHIN_S)
    assert not alive, f"left: {[' '.join(p.cmdline())[:80] for p in alive]}"
    temporary = sorted(p.name for p in (scene.folder / "tmp").iterdir())
    assert not temporary, f"left in the temporary folder: {temporary}"
    semaphores = [p.name for name in scene.scratch for p in SEMAPHORES.glob(f"sem.{name}-*")]
    assert not semaphores, f"left: {semaphores}"


def kinds(only: str) -> list[Kind]:
    """All faults, each with every run that it can happen to."""
    found = []
    for by_hand in (False, True):
        processes = ANYWHERE | (BY_HAND if by_hand else LOCAL)
        on_disk = processes | (WITH_MOUNTS if os.geteuid() == 0 else {})
        found += [Kind(by_hand, False, *item) for item in on_disk.items()]
        found += [Kind(by_hand, True, *item) for item in (processes | OF_STORAGE).items()]
    return [kind for kind in found if only in str(kind)]


def one_run(
    folder: Path, photos: Path, chance: random.Random, kind: Kind, usual: Usual
) -> tuple[str, bool]:
    """What came of it, `FAILED: ...` where something was lost or left; and whether the fault hit
    the run, which may have ended before."""
    moment = usual.any_moment(chance)
    with new_scene(folder, photos, chance, kind.by_hand, kind.is_s3) as scene:
        try:
            with polling(scene.out, scene.environment):
                outcome, hit = disturb(scene, kind.fault, moment)
            scene.end_cluster()
            check(scene, usual.files)
        except AssertionError as err:
            outcome, hit = f"FAILED: {err}", True
    print(f"{folder.name:>5} {kind}, {moment}: {outcome}{'' if hit else f', {LATE}'}", flush=True)
    return outcome, hit


def unleash(n_runs: int, seed: int, only: str) -> bool:
    """Prints the table; whether nothing was lost or left in any run."""
    if os.geteuid():
        print(f"not root, so without: {', '.join(WITH_MOUNTS)}")
    chance, known = random.Random(seed), kinds(only)
    table: dict[str, Counter[str]] = {}
    failures: list[str] = []
    usual: dict[bool, Usual] = {}
    with scratch_folder() as folder:
        photos = make_photos(folder)
        for path in sorted(photos.rglob("*.jpg"))[::5]:
            path.unlink()
        for is_s3 in {kind.is_s3 for kind in known}:
            name = "undisturbed-s3" if is_s3 else "undisturbed"
            with new_scene(folder / name, photos, chance, is_s3=is_s3) as scene:
                usual[is_s3] = undisturbed(scene)
        rounds = range(-(-n_runs // len(known)))
        order = [kind for _ in rounds for kind in chance.sample(known, len(known))]
        for i, kind in enumerate(order[:n_runs]):
            for repeat in range(1 + REPEATS):
                outcome, hit = one_run(
                    folder / f"{i}-{repeat}", photos, chance, kind, usual[kind.is_s3]
                )
                table.setdefault(str(kind), Counter())[outcome if hit else LATE] += 1
                if outcome.startswith("FAILED"):
                    failures.append(f"run {i}, {kind}: {outcome}")
                if hit:
                    break
    print()
    for name, outcomes in sorted(table.items()):
        told = ", ".join(f"{outcome} {n}x" for outcome, n in sorted(outcomes.items()))
        print(f"{name:54} {told}")
    n_late = sum(outcomes[LATE] for outcomes in table.values())
    n_hit = sum(outcomes.total() for outcomes in table.values()) - n_late
    print(f"{n_hit} runs, {len(failures)} failed; {n_late} more came too late", *failures, sep="\n")
    return not failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="runs whose name contains this, such as `s3`")
    arguments = parser.parse_args()
    if os.geteuid() == 0 and "CHAOS_MOUNTS" not in os.environ:  # which nobody else sees
        os.environ["CHAOS_MOUNTS"] = "own"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    raise SystemExit(0 if unleash(arguments.runs, arguments.seed, arguments.only) else 1)


if __name__ == "__main__":
    main()
