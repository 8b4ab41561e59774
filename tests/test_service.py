"""Runs of jobs: their records, however they end, and that nothing of them lives on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from datasets.commit import hold, is_held
from pipeline.history import append_line, read_lines
from pipeline.metrics import exposition
from pipeline.service import GRACE_S
from tests.running import PIPELINE, fill_up, run, run_script, tree_hash, wait_until

SHORT = {"limit": 40, "copies": 1, "workers": 0}
LONG = {"copies": 60_000, "workers": 0}  # minutes


def write_job(folder: Path, *steps: dict[str, Any], **keys: Any) -> Path:
    """A job file in the folder; JSON is YAML."""
    path = folder / "job.yaml"
    body = {"history": str(folder / "history"), **keys, "steps": list(steps)}
    path.write_text(json.dumps(body))
    return path


def augment(folder: Path, **options: Any) -> dict[str, Any]:
    return {"augment": {**SHORT, "out": str(folder / "out"), **options}}


def records(folder: Path) -> list[dict[str, Any]]:
    return events((folder / "history/job.runs.jsonl").read_text())


def metrics(folder: Path) -> dict[str, float]:
    """Name of a metric, and of a step's with its number -> value."""
    families = text_string_to_metric_families((folder / "history/job.prom").read_text())
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.labels["job_name"] == "job" for sample in samples)
    return {sample.name + sample.labels.get("step", ""): sample.value for sample in samples}


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def running(
    job: Path, is_going: Callable[[], bool], *options: str
) -> Iterator[subprocess.Popen[str]]:
    """A run of the job, from when it is so far."""
    command = [PIPELINE, "run", str(job), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True) as process:
        try:
            while process.poll() is None and not is_going():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.05)
            assert process.poll() is None, process.stderr.read()
            yield process
        finally:
            process.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_steps_run_one_after_another_and_leave_a_record(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path), {"verify": {"folder": str(tmp_path / "out")}})
    done = run("run", job, "--set", "augment.seed=3")
    assert "every hash fits" in done.stdout
    first, told, second, end = done.stderr.splitlines()
    assert first.startswith("1/2 augment: pipeline augment --out ")
    assert told.startswith(f"1/2 augment: {tmp_path / 'out'}: 120 images (test 40, train 80) in")
    assert second == f"2/2 verify: pipeline verify {tmp_path / 'out'}"
    assert end.startswith("job: done in ")
    (record,) = records(tmp_path)
    assert (record["job"], record["exit_code"], record["error"]) == ("job", 0, None)
    assert record["set"] == ["augment.seed=3"]
    assert record["start"] <= record["end"]
    assert {"python", "augmentation-pipeline", "numpy"} <= set(record["versions"])
    assert record["host"] == os.uname().nodename
    made, verified = record["steps"]
    assert made["command"][:2] == ["augment", "--out"]
    assert (made["exit_code"], made["rows"], made["quarantined"]) == (0, 120, 0)
    assert (made["shards_written"], made["shards_reused"]) == (2, 0)
    assert made["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("out/*.parquet"))
    assert made["seconds"] > 0
    assert set(verified) == {"command", "exit_code", "seconds"}
    names = sorted(path.name for path in (tmp_path / "history").iterdir())
    assert names == ["job.prom", "job.runs.jsonl"]


def test_the_same_job_again_finds_all_of_it_done(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path))
    run("run", job)
    before = tree_hash(tmp_path / "out")
    assert "this job was done before; nothing to do" in run("run", job).stderr
    assert tree_hash(tmp_path / "out") == before
    assert [record["exit_code"] for record in records(tmp_path)] == [0, 0]
    assert records(tmp_path)[1]["steps"][0]["shards_reused"] == 2
    lines = read_lines(tmp_path / "out.runs.jsonl")
    assert [line["exit_code"] for line in lines] == [0, 0]  # augment's own, beside its output


def test_a_step_that_fails_ends_the_job_with_its_exit_code(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path, dataset="/nowhere"), {"clean": {}})
    said = run("run", job, code=2).stderr
    _, error = said.splitlines()
    assert error.startswith(
        "pipeline: job: step 1/2 augment ended with exit code 2: --dataset /now"
    )
    (record,) = records(tmp_path)
    assert (record["exit_code"], len(record["steps"])) == (2, 1)
    assert record["error"] == error.removeprefix("pipeline: job: ")


def test_a_step_that_is_killed_is_told(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path, **LONG))
    with running(job, lambda: any(tmp_path.glob(".out.partial-*"))) as process:
        family(process)[0].kill()
        assert process.wait(timeout=60) == 137
    assert records(tmp_path)[0]["error"] == "step 1/1 augment was killed by SIGKILL"


def test_json_lines_name_job_step_shard_and_worker(tmp_path: Path) -> None:
    bad = {"verify": {"folder": str(tmp_path)}}
    job = write_job(tmp_path, augment(tmp_path), bad)
    told = events(run("run", job, "--log-format", "json", code=2).stderr)
    assert all({"time", "message", "event", "job"} <= set(event) for event in told)
    kinds = [event["event"] for event in told]
    assert kinds == ["step", "shard", "shard", "done", "step", "error", "error"]
    for shard in told[1:3]:
        assert (shard["job"], shard["step"], shard["command"]) == ("job", 1, "augment")
        path = tmp_path / "out" / shard["shard"]
        assert shard["rows"] == pq.read_metadata(path).num_rows
        assert shard["worker"].startswith(f"{os.uname().nodename}:")
        assert shard["seconds"] >= 0
    assert told[-2]["message"].startswith(f"{tmp_path}: no _manifest.json")
    assert [event["exit_code"] for event in told[-2:]] == [2, 2]


def test_results_are_json_lines_on_standard_error_where_these_are_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = write_job(tmp_path, augment(tmp_path), {"verify": {"folder": str(out)}})
    for words in (("run", job), ("verify", out), ("run", job, "--dry-run")):
        done = run(*words, "--log-format", "json")
        (result,) = [event for event in events(done.stderr) if event["event"] == "result"]
        assert done.stdout == ""
        if words == ("run", job):
            assert (result["job"], result["step"], result["command"]) == ("job", 2, "verify")
        if "--dry-run" not in words:
            assert "every hash fits" in result["message"]


def test_arguments_that_look_like_options_are_arguments(tmp_path: Path) -> None:
    job = write_job(tmp_path, {"evaluate": {"runs": ["--layers"]}})
    said = run("run", job, code=2).stderr
    assert "step 1/1 evaluate ended with exit code 2: --layers: no such" in said


def test_quiet_prints_errors_only(tmp_path: Path) -> None:
    verify = {"verify": {"folder": str(tmp_path / "out")}}
    done = run("run", write_job(tmp_path, augment(tmp_path), verify), "--quiet")
    assert (done.stdout, done.stderr) == ("", "")
    assert run("verify", tmp_path / "out", "--quiet").stdout == ""
    job = write_job(tmp_path, {"verify": {"folder": str(tmp_path)}})
    (line,) = run("run", job, "--quiet", code=2).stderr.splitlines()
    assert line.startswith("pipeline: job: step 1/1 verify ended with exit code 2: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("augment", "--dataset", "/nowhere"), 2, "--dataset /nowhere: neither a known name"),
        (("augment", "--copies", "many"), 2, "--copies many: expected a valid integer"),
        (("augment", "--copys", "1"), 2, "No such option: --copys"),
        (("run", "nothing.yaml"), 2, "nothing.yaml: no such file"),
    ],
)
def test_errors_are_json_lines_where_these_are_asked_for(
    words: tuple[str, ...], code: int, message: str
) -> None:
    (error,) = events(run(*words, "--log-format", "json", code=code).stderr)
    assert (error["event"], error["exit_code"]) == ("error", code)
    assert message in error["message"]


def test_metrics_tell_the_last_run_and_keep_the_last_success(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path))
    run("run", job)
    good = metrics(tmp_path)
    assert good["pipeline_last_run_exit_code"] == 0
    end = good["pipeline_last_run_end_timestamp_seconds"]
    assert good["pipeline_last_run_start_timestamp_seconds"] <= end
    assert good["pipeline_last_success_timestamp_seconds"] == end
    step = records(tmp_path)[0]["steps"][0]
    for name in ("rows", "bytes", "quarantined", "seconds", "shards_written", "shards_reused"):
        assert good[f"pipeline_step_{name}1"] == step[name]
    run("run", job, "--set", "augment.dataset=/nowhere", code=2)
    bad = metrics(tmp_path)
    assert bad["pipeline_last_run_exit_code"] == 2
    assert bad["pipeline_last_success_timestamp_seconds"] == end
    assert "pipeline_step_rows1" not in bad


def test_a_success_while_the_clock_was_wrong_is_not_the_last_one_for_ever() -> None:
    times = {"start": "2026-11-24T02:00:00Z", "steps": [], "exit_code": 0}
    wrong, right = ({**times, "end": f"{year}-11-24T03:00:00Z"} for year in (2040, 2026))
    assert b'success_timestamp_seconds{job_name="x"} 1.7954' in exposition("x", [wrong, right])


def test_a_stop_never_leaves_the_lock_of_imports_held() -> None:
    """In Python's own code of imports, which is told by its name, a stop is put off."""
    run_script("""
import signal, threading
import cli

within = compile('''
import os, signal
os.kill(os.getpid(), signal.SIGTERM)
for _ in range(1000):
    pass
is_over = True
''', "<frozen importlib._bootstrap>", "exec")
signal.signal(signal.SIGTERM, cli.stop)
names = {}
try:
    exec(within, names)
    threading.Event().wait(60)
except cli.Stopped as err:  # anywhere behind the code of imports
    assert err.code == 143
    assert names["is_over"]
else:
    raise AssertionError("the signal was lost")
""")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_a_run_with_workers_and_the_next_one_goes_on(
    tmp_path: Path, number: int, code: int
) -> None:
    step = augment(tmp_path, limit=100, copies=200, workers=2, **{"block-samples": 16})
    job = write_job(tmp_path, step)
    with running(job, lambda: any(tmp_path.glob(".out.partial-*/.records/*"))) as process:
        others = family(process)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        said = process.stderr.read().splitlines()
    assert_gone(others)
    assert said[-1] == (
        "pipeline: job: stopped in step 1/1 augment; the same command goes on from there"
    )
    assert not (tmp_path / "out").exists()
    assert "resuming: " in run("run", job, "--set", "augment.workers=0").stderr
    assert [record["exit_code"] for record in records(tmp_path)] == [code, 0]
    options = ("--limit", 100, "--copies", 200, "--block-samples", 16, "--workers", 0)
    run("augment", *options, "--out", tmp_path / "whole")
    assert tree_hash(tmp_path / "out") == tree_hash(tmp_path / "whole")


def test_with_nohup_it_goes_on_without_its_terminal(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path, limit=100, copies=200, workers=0))
    command = ["nohup", PIPELINE, "run", job]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: list(tmp_path.glob(".out.partial-*")), "the step")
    os.killpg(process.pid, signal.SIGHUP)
    for step in psutil.Process(process.pid).children():
        step.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0


def test_a_run_that_can_only_be_looked_at_is_seen_to_go(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "job")
    with hold(tmp_path / "job"):
        assert is_held(tmp_path / "job")
    assert not is_held(tmp_path / "job")


def test_a_run_that_is_killed_leaves_no_process_and_is_recorded_by_the_next(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path, **{**LONG, "workers": 2}))
    with running(job, lambda: any(tmp_path.glob(".out.partial-*/.train*.tmp"))) as process:
        others = family(process)
        assert len(others) >= 4  # the step, and its workers
        process.kill()
    assert_gone(others)
    run("run", job, "--set", "augment.copies=1", "--set", f"augment.out={tmp_path / 'other'}")
    killed, done = records(tmp_path)
    assert (killed["exit_code"], killed["error"], killed["end"]) == (137, "killed", None)
    assert done["exit_code"] == 0


def test_status_shows_a_running_job_and_a_killed_one_and_writes_nothing(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path, **LONG))
    history = tmp_path / "history"
    with running(job, lambda: any(tmp_path.glob(".out.partial-*"))) as process:
        (going,) = json.loads(run("status", history, "--json").stdout)
        assert (going["state"], going["exit_code"], going["error"]) == ("running", None, None)
        assert "running" in run("status", history).stdout
        busy = run("run", job, code=4).stderr
        process.kill()
    assert re.fullmatch(
        rf"pipeline: job: a run of {job} has been going since \S+Z; wait for that one\n", busy
    )
    before = tree_hash(history)
    for _ in range(2):
        (killed,) = json.loads(run("status", history, "--json", code=3).stdout)
        assert (killed["state"], killed["exit_code"]) == ("killed", 137)
    assert tree_hash(history) == before  # who looks may be root, and the service could not append
    assert "job.runs.jsonl" not in before
    run("run", job, "--set", "augment.dataset=none", code=2)
    assert [record["exit_code"] for record in records(tmp_path)] == [137, 2]


def test_a_job_past_its_deadline_stops_itself(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path, **LONG), {"clean": {}}, deadline="3s")
    said = run("run", job, code=6).stderr.splitlines()
    assert said[-1] == (
        "pipeline: job: its deadline passed in step 1/2 augment; the same command goes on from "
        "there"
    )
    (record,) = records(tmp_path)
    assert (record["exit_code"], len(record["steps"])) == (6, 1)
    assert not (tmp_path / "out").exists()


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("up", file=sys.stderr, flush=True)
time.sleep(600)
"""
RUN_STUBBORN = """
import sys
import cli
cli.STEP = (sys.executable, "-c", sys.argv.pop(1))
cli.main()
"""


def test_a_step_that_does_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    job = write_job(tmp_path, {"clean": {}})
    command = [sys.executable, "-c", RUN_STUBBORN, STUBBORN, "run", str(job)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("1/1 clean: pipeline clean")
        assert process.stderr.readline() == "1/1 clean: up\n"
        others = family(process)
        assert len(others) == 2
        process.terminate()
        assert process.wait(timeout=15) == 143  # on a busy machine; elsewhere within 5 s
    assert GRACE_S < 5
    assert_gone(others)
    assert records(tmp_path)[0]["exit_code"] == 143


TALKATIVE = """
import json, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    print(json.dumps({"message": "x" * 1000, "event": "progress"}), flush=True)
"""


@pytest.mark.parametrize(("keys", "code"), [({}, 143), ({"deadline": "1s"}, 6)])
def test_a_run_ends_though_nobody_reads_its_log_any_more(
    tmp_path: Path, keys: dict[str, str], code: int
) -> None:
    job = write_job(tmp_path, {"clean": {}}, **keys)
    command = [sys.executable, "-c", RUN_STUBBORN, TALKATIVE, "run", str(job)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("1/1 clean: pipeline clean")
        others = family(process)
        if not keys:
            process.terminate()
        assert process.wait(timeout=60) == code
        assert_gone(others)


def test_a_run_goes_on_though_nobody_reads_its_results(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run("augment", "--limit", 20, "--workers", 0, "--out", out)
    job = write_job(tmp_path, {"verify": {"folder": out}}, augment(tmp_path, out=f"{out}-2"))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [PIPELINE, "run", str(job)], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert "1/2 verify: results cannot be printed from here on (Broken pipe)" in done.stderr
    assert (tmp_path / "out-2").is_dir()


def test_a_deadline_may_be_longer_than_a_month(tmp_path: Path) -> None:
    run("run", write_job(tmp_path, {"clean": {"folder": str(tmp_path)}}, deadline="9999999h"))


def test_a_record_follows_a_line_that_a_crash_cut_off(tmp_path: Path) -> None:
    lines = tmp_path / "history/job.runs.jsonl"
    lines.parent.mkdir()
    nested = b'{"run": "a", "exit_code": 0}\n' + b"[" * 100_000
    for cut_off in (b'{"run": "a", "exit_code": 0}\n{"run": "b", "exi', b'{"run": "a', nested):
        lines.write_bytes(cut_off)
        found = read_lines(lines)
        append_line(lines, {"run": "c"})
        assert read_lines(lines) == [*found, {"run": "c"}]
        assert lines.read_bytes().endswith(b'{"run": "c"}\n')
        assert b"exi" not in lines.read_bytes().splitlines()[-1]


def test_a_run_that_was_killed_after_its_record_gets_no_second_one(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path))
    run("run", job)
    (record,) = records(tmp_path)
    marker = tmp_path / "history/.job.started.json"
    marker.write_text(json.dumps({**record, "end": None, "exit_code": None}))
    (status,) = json.loads(run("status", tmp_path / "history", "--json").stdout)
    assert (status["state"], status["exit_code"]) == ("done", 0)
    run("run", job)
    assert [one["run"] for one in records(tmp_path)][:-1] == [record["run"]]
    assert not marker.exists()


def test_a_history_that_cannot_be_written_is_told_before_any_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = tmp_path / "file" / "history"
    job = write_job(tmp_path, augment(tmp_path), history=str(history))
    (line,) = run("run", job, code=5).stderr.splitlines()
    assert line.startswith(f"pipeline: {history}: the history cannot be written (Not a dir")
    assert not (tmp_path / "out").exists()


def test_a_success_is_told_though_the_disk_of_the_history_is_full(
    tmp_path: Path, small_disk: Path
) -> None:
    history, ballast = small_disk / "history", small_disk / "ballast"
    job = write_job(tmp_path, {"clean": {"folder": str(tmp_path)}}, history=str(history))
    history.mkdir()
    fill_up(ballast)
    os.truncate(ballast, ballast.stat().st_size - 3 * 4096)  # as much as a run begins with
    (line,) = run("run", job, "--quiet").stderr.splitlines()
    assert line.startswith("job: succeeded; its record is added by the next run: ")
    assert "history cannot be written (No space left on device)" in line
    (found,) = json.loads(run("status", history, "--json").stdout)
    assert (found["state"], found["exit_code"]) == ("done", 0)
    run("run", job, code=5)  # which must not lose it
    ballast.unlink()
    run("run", job)
    first, second = read_lines(history / "job.runs.jsonl")
    assert (first["exit_code"], first["start"], first["end"]) == (0, found["start"], found["end"])
    assert second["exit_code"] == 0


def test_an_end_that_can_be_recorded_nowhere_is_told(tmp_path: Path) -> None:
    job = write_job(tmp_path, augment(tmp_path, **LONG))
    with running(job, lambda: any(tmp_path.glob(".out.partial-*"))) as process:
        shutil.rmtree(tmp_path / "history")
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "job: failed with exit code 143, but that is recorded nowhere, and status will " in told


def test_status_of_outputs_is_that_of_the_runs_that_wrote_them(tmp_path: Path) -> None:
    run("augment", "--limit", 20, "--workers", 0, "--out", tmp_path / "digits")
    (found,) = json.loads(run("status", tmp_path, "--json").stdout)
    assert (found["job"], found["exit_code"], found["quarantined"]) == ("digits", 0, 0)
    assert found["rows"] == 120
    assert found["last_success"] == found["end"]


def test_the_table_of_jobs_fits_into_80_columns(tmp_path: Path) -> None:
    first = {"start": "2026-11-24T02:00:00+00:00", "end": "2026-11-24T03:21:00+00:00"}
    second = {"start": "2026-11-25T02:00:00+00:00", "end": "2026-11-25T04:00:00+00:00"}
    done = {**first, "exit_code": 0, "steps": [{"rows": 1_234_567, "quarantined": 12}]}
    late = {**second, "exit_code": 6, "error": "past its deadline of 2 h", "steps": []}
    append_line(tmp_path / "birds.runs.jsonl", done)
    append_line(tmp_path / "birds.runs.jsonl", late)
    append_line(tmp_path / "nightly-birds.runs.jsonl", done)
    append_line(tmp_path / "other.runs.jsonl", {**late, "error": "no such folder", "exit_code": 2})
    found = run("status", tmp_path, code=3, env={"COLUMNS": "80"})
    head, _, *lines = (re.split("  +", line.strip()) for line in found.stdout.splitlines())
    assert head == ["job", "last run, UTC", "took", "outcome", "rows", "not used"]
    assert lines == [
        ["birds", "2026-11-25 02:00", "2 h 00 min", "past its"],
        ["deadline (6)"],
        ["nightly-birds", "2026-11-24 02:00", "1 h 21 min", "done", "1,234,567", "12"],
        ["other", "2026-11-25 02:00", "2 h 00 min", "wrong use (2)"],
        ["birds: past its deadline of 2 h; last success 2026-11-24 03:21 UTC"],
        ["other: no such folder; it has never succeeded"],
    ]


def test_of_several_folders_each_job_is_named_with_its_own(tmp_path: Path) -> None:
    times = {"start": "2026-11-25T02:00:00+00:00", "end": "2026-11-25T04:00:00+00:00"}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        job = {**times, "exit_code": 2, "error": f"no such {name}", "steps": []}
        append_line(tmp_path / name / "nightly.runs.jsonl", job)
    done = subprocess.run([PIPELINE, "status", "a", "b"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 3
    assert done.stdout.decode().splitlines()[-2:] == [
        "a/nightly: no such a; it has never succeeded",
        "b/nightly: no such b; it has never succeeded",
    ]


def test_status_where_nothing_has_run_is_well(tmp_path: Path) -> None:
    assert run("status", tmp_path).stdout == f"no runs in {tmp_path}\n"
    assert json.loads(run("status", tmp_path, "--json").stdout) == []
    done = subprocess.run([PIPELINE, "status"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode() == f"no runs in {tmp_path / 'history'}\n"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("none", "none: no such folder; expected a folder of histories"),
        ("s3://bucket/out", "s3://bucket/out: runs into object storage are recorded on the mach"),
    ],
)
def test_status_of_no_folder_is_refused(place: str, expected: str) -> None:
    (line,) = run("status", place, "--json", code=2).stderr.splitlines()
    assert line.startswith(f"pipeline: {expected}")


UNREADABLE = """
import os, sys
import cli

os.chdir(sys.argv[1])
cli.app(["status", "."], standalone_mode=False)  # imports all that it needs
os.chmod(".", 0)
if os.geteuid() == 0:
    os.seteuid(65534)
sys.argv[1:] = ["status", "."]
cli.main()
"""


def test_a_history_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    folder.mkdir()
    try:
        command = [sys.executable, "-c", UNREADABLE, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o700)
    assert done.returncode == 2
    assert done.stderr.startswith("pipeline: .: Permission denied; choose another path, or give")


@pytest.mark.slow
def test_the_demo_runs_and_runs_again(tmp_path: Path) -> None:
    demo = Path(__file__).parents[1] / "jobs" / "demo.yaml"
    command = [PIPELINE, "run", str(demo), "--set", "train.epochs=1"]
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    first, second = events((tmp_path / "history/demo.runs.jsonl").read_text())
    assert [len(record["steps"]) for record in (first, second)] == [4, 4]
    accuracies = [record["steps"][2]["test_accuracy"] for record in (first, second)]
    assert accuracies[0] == accuracies[1]
