"""Who writes an output in object storage: for how long nobody else does, and who has lost that."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
import s3fs

from datasets import lease
from datasets.errors import OutputBusy
from datasets.storage import place
from tests.object_storage import Faulty, rclone
from tests.running import run, wait_until

ELSEWHERE = json.dumps(
    {**lease.this_process(), "host": "another machine", "space": "another machine's"}
).encode()


def write_lease(folder: Path, age_s: float) -> None:
    """One of another machine, before the server has looked there."""
    path = folder / ".lease" / "00000003"
    path.parent.mkdir(parents=True)
    path.write_bytes(ELSEWHERE)
    os.utime(path, (time.time() - age_s,) * 2)


def test_a_lease_expires_after_a_minute_without_a_sign_of_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lease(tmp_path / "data" / "young", 30)
    write_lease(tmp_path / "data" / "old", 61)
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()  # of the servers of other tests
    written: list[str] = []

    def fault(method: str, path: str) -> None:
        if method == "PUT" and re.search(r"/\.lease/\d", path):
            written.append(path)

    with rclone(tmp_path) as server, Faulty(server, fault) as proxy:
        for name, value in proxy.front.env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OutputBusy, match="another run is writing it, or was killed on another"):
            lease.refuse_if_leased(place("s3://data/young"))
        lease.refuse_if_leased(place("s3://data/old"))
        with lease.leased(place("s3://data/old")) as held:
            wait_until(lambda: len(written) > 2, "a sign of its holder")
            assert {*written} == {"/data/old/.lease/00000004"}
            server.files().pipe_file("data/old/.lease/00000005", ELSEWHERE)
            wait_until(lambda: held.is_lost, "that another has taken it")
            with pytest.raises(OutputBusy, match="another run took over"):
                held.check()
    s3fs.S3FileSystem.clear_instance_cache()
    assert (tmp_path / "data" / "old" / ".lease" / "00000005").read_bytes() == ELSEWHERE


def test_a_run_that_has_lost_its_lease_publishes_nothing(tmp_path: Path) -> None:
    write_lease(tmp_path / "data" / "out", 61)

    def fault(method: str, path: str) -> None:
        if method == "PUT" and re.search(r"/train[^/]+\.parquet", path):
            server.files().pipe_file("data/out/.lease/00000005", ELSEWHERE)

    with rclone(tmp_path) as server, Faulty(server, fault) as proxy:
        job = ("augment", "--limit", 40, "--copies", 1, "--workers", 0, "--out", "s3://data/out")
        said = run(*job, code=4, env=proxy.front.env).stderr
    assert "another run took over while this one stood still" in said
    assert not list(tmp_path.rglob("_versions/*"))
