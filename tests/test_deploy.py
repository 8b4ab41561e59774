"""The files in deploy/, by the tools of those who read them, and what becomes of exit codes."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.running import PIPELINE, write_photos
from tests.test_docs import COMMANDS, options_of

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SERVICE = DEPLOY / "pipeline-nightly.service"
TIMER = DEPLOY / "pipeline-nightly.timer"
INSTALLED = "/opt/augmentation-pipeline/bin/pipeline"
STATE = "/var/lib/augmentation-pipeline"
AIRFLOW_PYTHON = os.environ.get(
    "PIPELINE_AIRFLOW_PYTHON", str(ROOT / ".venv-airflow" / "bin" / "python")
)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


def call(*command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def setting(unit: Path, name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.M)
    return value


def cron_line() -> tuple[str, str]:
    """Schedule and command of the one entry; the lines before it are comments and variables."""
    lines = (DEPLOY / "pipeline.cron").read_text().splitlines()
    (entry,) = [line for line in lines if not re.match(r"#|\w+=", line)]
    *fields, command = entry.split(maxsplit=5)
    return " ".join(fields), command


def kubernetes() -> dict[str, Any]:
    """Kind and name -> the object."""
    found = yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text())
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def pod_of(cron_job: dict[str, Any]) -> dict[str, Any]:
    return cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def dockerfile(instruction: str) -> str:
    """The arguments of the last such instruction."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction} (.*)$", text, re.M)[-1]


def dag_arguments() -> dict[str, Any]:
    """What the DAG and its operator are called with, of constants alone."""
    tree = ast.parse((DEPLOY / "airflow_dag.py").read_text())
    keywords = [k for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords]
    return {k.arg: k.value.value for k in keywords if isinstance(k.value, ast.Constant) and k.arg}


def commands() -> dict[str, list[str]]:
    """Where a command is written -> its words behind `pipeline`."""
    (container,) = pod_of(kubernetes()["CronJob/pipeline-nightly"])["containers"]
    in_cron = re.findall(rf"{INSTALLED} (.*?) >>", cron_line()[1])[0]
    in_dag = dag_arguments()["bash_command"].removeprefix(f"exec {INSTALLED} ")
    return {
        "service": shlex.split(setting(SERVICE, "ExecStart"))[1:],
        "cron": shlex.split(in_cron),
        "cronjob": container["args"],
        "health check": json.loads(dockerfile("HEALTHCHECK").partition("CMD ")[2])[1:],
        "dag": shlex.split(in_dag),
    }


@pytest.mark.parametrize("place", commands())
def test_every_command_and_option_in_the_files_exists(place: str) -> None:
    name, *words = commands()[place]
    assert name in COMMANDS
    assert {word for word in words if word.startswith("--")} <= options_of(COMMANDS[name])


def test_what_the_job_file_takes_from_the_environment_is_set() -> None:
    wanted = set(re.findall(r"\$\{(\w+)\}", (ROOT / "jobs" / "nightly.yaml").read_text()))
    for file in (SERVICE, DEPLOY / "pipeline.cron", DEPLOY / "airflow_dag.py"):
        for name in wanted - {"DATE"}:
            assert re.search(rf"\b{name}\b[=\"]", file.read_text()), f"{file.name}: {name}"


def test_all_schedules_are_the_same() -> None:
    cron = cron_line()[0]
    assert cron == kubernetes()["CronJob/pipeline-nightly"]["spec"]["schedule"]
    assert cron == dag_arguments()["schedule"]
    hour, minute = re.findall(r"(\d\d):(\d\d):00", setting(TIMER, "OnCalendar"))[0]
    assert cron == f"{int(minute)} {int(hour)} * * *"


@needs_systemd
def test_systemd_accepts_service_and_timer(tmp_path: Path) -> None:
    for unit in (SERVICE, TIMER):
        text = unit.read_text().replace(INSTALLED, PIPELINE)
        (tmp_path / unit.name).write_text(text)
    done = call("systemd-analyze", "verify", *tmp_path.iterdir())
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    version = int(re.findall(r"systemd (\d+)", call("systemd-analyze", "--version").stdout)[0])
    if version < 254:  # as the service says
        said = [line for line in said if not re.search("'Restart(Steps|MaxDelaySec)'", line)]
    assert not said


@needs_systemd
def test_the_service_is_as_little_exposed_as_systemd_calls_ok() -> None:
    done = call("systemd-analyze", "security", "--offline=true", "--threshold=20", SERVICE)
    assert done.returncode == 0, done.stdout


@needs_systemd
def test_systemd_understands_when_the_timer_elapses() -> None:
    done = call("systemd-analyze", "calendar", setting(TIMER, "OnCalendar"))
    assert done.returncode == 0, done.stderr
    assert "Next elapse" in done.stdout


def test_systemd_starts_again_after_5_and_takes_4_and_143_for_an_end() -> None:
    assert setting(SERVICE, "Restart") == "on-failure"
    assert setting(SERVICE, "SuccessExitStatus").split() == ["4", "143"]
    assert setting(SERVICE, "RestartPreventExitStatus").split() == ["1", "2", "3", "6"]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 143])
def test_the_cron_line_says_something_only_when_somebody_must_look(
    tmp_path: Path, code: int
) -> None:
    command = tmp_path / "pipeline"
    command.write_text(f"#!/bin/sh\necho log\nexit {code}\n")
    command.chmod(0o755)
    line = cron_line()[1].replace(INSTALLED, str(command)).replace(STATE, str(tmp_path))
    done = call("sh", "-c", line)
    assert (tmp_path / "nightly.jsonl").read_text() == "log\n"
    assert done.stderr == ""
    if code in (0, 4):
        assert done.stdout == ""
    else:
        assert f"code {code};" in done.stdout


def test_kubernetes_accepts_every_object() -> None:
    for item in kubernetes().values():
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_tries_again_after_5_and_143_alone() -> None:
    spec = kubernetes()["CronJob/pipeline-nightly"]["spec"]["jobTemplate"]["spec"]
    (rule,) = [r for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["operator"] == "NotIn"
    assert rule["onExitCodes"]["values"] == [5, 143]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or the policy is refused


def test_every_volume_of_the_pod_is_there_and_mounted() -> None:
    objects = kubernetes()
    pod = pod_of(objects["CronJob/pipeline-nightly"])
    (container,) = pod["containers"]
    assert [v["name"] for v in pod["volumes"]] == [m["name"] for m in container["volumeMounts"]]
    for volume in pod["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert f"PersistentVolumeClaim/{claim['claimName']}" in objects
        if config := volume.get("configMap"):
            assert f"ConfigMap/{config['name']}" in objects


def test_the_job_in_the_config_map_runs(tmp_path: Path) -> None:
    objects = kubernetes()
    (tmp_path / "jobs").mkdir()
    for name, text in objects["ConfigMap/pipeline-jobs"]["data"].items():
        (tmp_path / "jobs" / name).write_text(text)
    write_photos(tmp_path / "data" / "photos")
    (container,) = pod_of(objects["CronJob/pipeline-nightly"])["containers"]
    done = call(PIPELINE, *container["args"], "--set", "augment.workers=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "augmented" / "photos" / "latest" / "_SUCCESS").is_file()
    assert call(PIPELINE, *commands()["health check"][:1], cwd=tmp_path).returncode == 0


def test_the_pod_has_a_worker_for_each_of_its_cpus() -> None:
    objects = kubernetes()
    (job,) = map(yaml.safe_load, objects["ConfigMap/pipeline-jobs"]["data"].values())
    (container,) = pod_of(objects["CronJob/pipeline-nightly"])["containers"]
    assert job["steps"][0]["augment"]["workers"] == int(container["resources"]["limits"]["cpu"])


def test_the_linter_has_nothing_to_say_about_the_dockerfile() -> None:
    done = call(Path(sys.executable).with_name("hadolint"), DEPLOY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_signals_reach_the_command_in_the_container_and_it_is_not_root() -> None:
    assert json.loads(dockerfile("ENTRYPOINT")) == ["pipeline"]
    assert dockerfile("USER") == "10001:10001"


def test_the_image_is_built_from_what_the_package_is_made_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert (
        kept == {"cli.py", "constraints.txt", "LICENSE", "README.md", "pyproject.toml"} | packages
    )


AIRFLOW = """
import sys
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException

bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
(task,) = bag.dags["pipeline_nightly"].tasks
task.bash_command, task.cwd = f"exit {sys.argv[2]}", None
try:
    task.execute({})
except AirflowException as err:
    print(type(err).__name__, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(AIRFLOW_PYTHON).exists(), reason="needs Airflow; `make .venv-airflow/installed`"
)
@pytest.mark.parametrize(
    ("code", "end"), [(0, ""), (4, "AirflowSkipException"), (5, "AirflowException")]
)
def test_airflow_imports_the_dag_and_skips_after_4(tmp_path: Path, code: int, end: str) -> None:
    done = call(
        *(AIRFLOW_PYTHON, "-c", AIRFLOW, DEPLOY / "airflow_dag.py", code),
        cwd=tmp_path,
        PYTHONPATH="",
        AIRFLOW_HOME=str(tmp_path),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1:] == ([end] if end else []), done.stderr
