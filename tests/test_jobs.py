"""Job files: what is accepted, what is refused and how that is said, and what the schema says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import cli
from datasets.errors import UserError
from pipeline.default_out import default_out
from pipeline.job_schema import json_schema
from pipeline.jobfile import JobFile, read_job_file
from pipeline.output_place import output_folder
from pipeline.plan import AugmentConfig
from pipeline.steps import LEFT_OUT, Option, command_of
from pipeline.yaml_file import MAX_BYTES, read_yaml
from tests.running import PIPELINE, run
from trainers.config import run_folder

ROOT = Path(__file__).parents[1]
COMMANDS = {step.__name__: command_of(step) for step in cli.STEPS}
SCHEMA = json_schema(COMMANDS)
VALID = Draft202012Validator(SCHEMA)


def read(folder: Path, text: str, *changes: str, **environ: str) -> JobFile:
    path = folder / "job.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    return read_job_file(path, changes, COMMANDS, environ, "2026-02-03")


def words(job: JobFile) -> list[list[str]]:
    return [step.words for step in job.steps]


def refusal(folder: Path, text: str, *changes: str, **environ: str) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, text, *changes, **environ)
    assert len(str(caught.value).splitlines()) == 1
    assert not caught.value.mistakes
    return str(caught.value)


def test_options_become_the_words_of_the_command(tmp_path: Path) -> None:
    job = read(
        tmp_path,
        """
        name: nightly
        history: /var/history
        deadline: 90min
        steps:
          - augment: {dataset: photos, image_size: 224, original: false, max-bad: 0.5}
          - train: {lr: 1e-3, save-h5: true, mixed-precision: false, seed: 010}
          - visualize: {model: -odd, layer: [conv1, "2"], class: cat}
          - clean:
        """,
    )
    assert (job.name, job.history, job.deadline_s) == ("nightly", Path("/var/history"), 5400)
    assert [" ".join(line) for line in words(job)] == [
        "augment --dataset photos --no-original --image-size 224 --max-bad 0.5",
        "train --lr 0.001 --seed 10 --resume --save-h5",
        "visualize --layer conv1 --layer 2 --class cat -- -odd",
        "clean",
    ]


def test_a_name_and_a_history_need_not_be_given(tmp_path: Path) -> None:
    job = read(tmp_path, "steps: [clean: {}]")
    assert (job.name, job.history, job.deadline_s) == ("job", Path("history"), None)


def test_trainings_go_on_where_they_stopped_unless_told_otherwise(tmp_path: Path) -> None:
    job = read(tmp_path, "steps: [{train: }, {crossval: }, {ablate: }, {train: {resume: false}}]")
    assert ["--resume" in line for line in words(job)] == [True, True, True, False]


def test_placeholders_are_filled_in(tmp_path: Path) -> None:
    text = """
    steps:
      - augment: {dataset: "${HERE}/x", copies: "${N}", original: "${NO}", split: "${N}"}
      - train: {out: "runs/${DATE}-$${HERE}", lr: "${LR}"}
    """
    job = read(tmp_path, text, HERE="a b", N="7", NO="false", LR="1e-4", DATE="never")
    assert words(job) == [
        ["augment", "--dataset", "a b/x", "--split", "7", "--copies", "7", "--no-original"],
        ["train", "--lr", "0.0001", "--out", "runs/2026-02-03-${HERE}", "--resume"],
    ]


def test_what_a_placeholder_stands_for_is_not_filled_in_again(tmp_path: Path) -> None:
    job = read(tmp_path, "steps: [{clean: {folder: '${A}'}}]", A="${B}")
    assert words(job) == [["clean", "${B}"]]


def test_set_changes_a_key_or_an_option_of_every_step_of_a_command(tmp_path: Path) -> None:
    text = "name: x\nsteps: [{augment: {image_size: 8, seed: 2}}, {clean: }, {augment: {out: x}}]"
    changes = ("augment.image-size=9", "deadline=2s", "augment.policy=flip()|rotate(degrees=3)")
    changes += ("augment.seed=", "name=", "clean.folder=/a #1")  # the first two taken out
    job = read(tmp_path, text, *changes)
    assert (job.deadline_s, job.name) == (2, "job")
    policy = ["--policy", "flip()|rotate(degrees=3)"]
    assert words(job) == [
        ["augment", *policy, "--image-size", "9"],
        ["clean", "/a #1"],
        ["augment", "--out", "x", *policy, "--image-size", "9"],
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("copies", "--set copies: expected KEY=VALUE, such as deadline=2h or augment.copies=8"),
        ("train.lr=1", "--set train.lr=1: no step is train; there are augment"),
        ("augment.copies=x", "step 1 (augment): copies: found 'x', expected a whole number"),
        ("augment.copys=1", "step 1 (augment): copys is not known; did you mean 'copies'?"),
        ("dedline=1h", "dedline is not known; did you mean 'deadline'?"),
        ("copies=8", "copies is not known; an option is COMMAND.OPTION, such as augment.copies"),
        ("dedline=", "there is no dedline to take out"),
        ("augment.copys=", "no step of augment has copys to take out"),
        ("deadline=0.5s", "deadline: found '0.5s', expected a time such as 90s, 30min or 6h"),
        ("deadline=*x", "anchors and aliases are not accepted"),
    ],
)
def test_a_change_is_checked_like_the_file(tmp_path: Path, change: str, expected: str) -> None:
    assert expected in refusal(tmp_path, "steps: [{augment: }]", change)


# What a job file must not say -> what is said of it. The schema refuses what is marked with True.
WRONG: list[tuple[str, str, bool]] = [
    ("", "found nothing, expected name, deadline, steps", True),
    ("[1]", "found [1], expected name, deadline, steps", True),
    ("name: x", "steps is missing; expected a list of one or more commands", True),
    ("steps: []", "steps: found [], expected a list of one or more commands", True),
    ("steps: {clean: }", "line 1: steps: found the key clean, expected a list of one", True),
    ("steps: [clean]", "step 1: found 'clean', expected one command and a colon", True),
    ("steps: [{clean: , verify: }]", "line 1: step 1: found the keys clean, verify, exp", True),
    ("steps: [{clean: }, {agument: }]", "step 2: agument is not known; did you mean 'aug", True),
    ("steps: [{run: }]", "step 1: run is not known; known: augment, train, crossval", True),
    ("steps:\n- augment:\n  copies: 3", "line 2: step 1: found the keys augment, copies", True),
    ("steps:\n- clean:\nfolder: a", "line 3: folder is an option; indent it further", True),
    ("steps: [{clean: 5}]", "step 1: clean: found 5, expected options", True),
    ("steps: [{evaluate: }]", "step 1: evaluate: found nothing, expected options", True),
    ("steps: [{verify: {}}]", "step 1 (verify): folder is missing; expected text", True),
    ("steps: [{evaluate: {runs: a}}]", "runs: found 'a', expected a list, each text", True),
    ("steps: [{evaluate: {runs: []}}]", "runs: found [], expected a list, each text", True),
    ("steps: [{evaluate: {runs: [[a]]}}]", "runs: found ['a'], expected a list", True),
    ("steps: [{augment: {copys: 1}}]", "copys is not known; did you mean 'copies'?", True),
    ("steps: [{augment: {copies: '1'}}]", "copies: found '1', expected a whole number", True),
    ("steps: [{augment: {copies: 1.5}}]", "copies: found 1.5, expected a whole number", True),
    ("steps: [{augment: {copies: true}}]", "copies: found true, expected a whole number", True),
    ("steps: [{augment: {copies: }}]", "copies: found nothing, expected a whole number", True),
    ("steps: [{augment: {quality: 101}}]", "found 101, expected a whole number, 1 to 100", True),
    ("steps: [{augment: {limit: 0}}]", "found 0, expected a whole number of at least 1", True),
    ("steps: [{augment: {max-bad: 2}}]", "found 2, expected a number, 0 to 1", True),
    ("steps: [{augment: {max-bad: .nan}}]", "found '.nan', expected a number, 0 to 1", True),
    ("steps: [{train: {lr: 1e999}}]", "lr: found inf, expected a number of at least 1e-12", False),
    ("steps: [{augment: {original: yes}}]", "found 'yes', expected true or false", True),
    ("steps: [{augment: {original: 1}}]", "found 1, expected true or false", True),
    ("steps: [{augment: {format: csv}}]", "found 'csv', expected one of parquet, tfrecord", True),
    (
        "steps: [{train: {model: mobilnetv2}}]",
        "MobileNetV2, EfficientNetV2B0, ConvNeXtTiny; did you mean 'MobileNetV2'?",
        True,
    ),
    ("steps: [{augment: {policy: 1.5}}]", "policy: found 1.5, expected text", True),
    ("steps: [{augment: {policy: [flip()]}}]", "policy: found ['flip()'], expected text", True),
    ("steps: [{augment: {out: ''}}]", "out: found '', expected text", True),
    ('steps: [{augment: {out: "a\\0b"}}]', "out: found 'a\\x00b', expected text", True),
    ("steps: [{augment: {resume: true}}]", "resume is not known, write overwrite: false", True),
    ("steps: [{augment: {no-original: true}}]", "not known, write original: false", True),
    (
        "steps: [{augment: {log-format: json}}]",
        "log-format is not known; did you mean",
        True,
    ),
    ("steps: [{augment: {dry-run: true}}]", "dry-run is not known; known: dataset", True),
    ("steps: [{augment: {image-size: 1, image_size: 2}}]", "image_size is not known", True),
    ("steps: [{augment: {}}]\nname: ../x", "name: found '../x', expected a name of letters", True),
    ("steps: [{augment: {}}]\nhistory: 1.5", "history: found 1.5, expected a folder", True),
    ("steps: [{augment: {}}]\ndeadline: 5 days", "deadline: found '5 days', expected a", True),
    ("steps: [{augment: {}}]\ndeadline: 60", "deadline: found 60, expected a time such", True),
    ("steps: [{augment: {}}]\nstep: 1", "step is not known; did you mean 'steps'?", True),
    ("steps: [{clean: {folder: '${NO}'}}]", "step 1 (clean): folder: ${NO} is not set", False),
    ("steps: [{clean: {folder: '${N O}'}}]", "folder: found '${N O}', expected ${NAME}", False),
    ("steps: [{clean: {folder: 'a${'}}]", "found '${', expected ${NAME}, or $${ for", False),
    ("steps: ['${NO}']", "step 1: ${NO} is not set: no environment variable NO", True),
    ("steps: '${NO}'", "steps: ${NO} is not set: no environment variable NO", True),
    ("steps: [{augment: {copies: '${TEXT}'}}]", "copies: found 'text', expected a whole", False),
    ("steps: [{augment: {format: '${TEXT}'}}]", "found 'text', expected one of parquet", False),
]


@pytest.mark.parametrize(("text", "expected", "is_of_schema"), WRONG)
def test_reader_and_schema_refuse_what_a_job_must_not_say(
    tmp_path: Path, text: str, expected: str, is_of_schema: bool
) -> None:
    assert expected in refusal(tmp_path, text, TEXT="text")
    assert VALID.is_valid(read_yaml(text)) != is_of_schema


@pytest.mark.parametrize(
    "text",
    [
        "steps: [{clean: }]",
        "steps: [{augment: {image_size: 224, max_bad: 0, policy: none}}]",
        "steps: [{augment: {copies: '${N}', format: '${F}', original: '${B}', max-bad: '${N}'}}]",
        "name: nightly-${DATE}\nhistory: a b\ndeadline: ${D}\nsteps: [{evaluate: {runs: [1, a]}}]",
        "steps: [{visualize: {model: x, class: cat, layer: [a]}}, {train: {resume: true}}]",
    ],
)
def test_reader_and_schema_accept_the_same_jobs(tmp_path: Path, text: str) -> None:
    assert VALID.is_valid(read_yaml(text))
    read(tmp_path, text, N="1", F="tfrecord", B="true", D="5s")


# YAML that is none, or would do or be more than it should.
HOSTILE = {
    "no YAML": ("a: b: c", "line 1: mapping values are not allowed here; look at the indentation"),
    "indented less": ("a:\n   b: 1\n  c: 2", "found '<block mapping start>'; look at the ind"),
    "twice": ("steps: []\nsteps: [{clean: }]", "line 2: steps is there twice"),
    "option twice": ("steps: [{clean: {folder: a, folder: b}}]", "folder is there twice"),
    "object": ("a: !!python/object/apply:os.system [ls]", "python/object/apply:os.system is not"),
    "any tag": ("!x {}", "line 1: the tag !x is not accepted; write a plain value"),
    "binary": ("a: !!binary aGVsbG8=", "the tag tag:yaml.org,2002:binary is not accepted"),
    "bomb": ("a: &a [x]\nb: &b [*a, *a]", "line 1: anchors and aliases are not accepted"),
    "itself": ("&a [*a]", "anchors and aliases are not accepted"),
    "deep": ("[" * 50_000, "line 1: nested deeper than 20"),
    "deep mappings": ("{a: " * 20_000, "line 1: nested deeper than 20"),
    "long": ("#" * (MAX_BYTES + 1), "longer than 100,000 bytes, which no job file is"),
    "two": ("--- a\n--- b", "line 2: but found another document"),
    "number": ("1: 2", "line 1: a key is not a name"),
    "list as key": ("? [a]\n: b", "line 1: a key is not a name"),
    "control": ("a: \x00", "special characters are not allowed"),
    "far character": ('a: "\\UFFFFFFFF"', "no text: "),
    "half a character": ('a: "\\ud800"', "no text: 'utf-8' codec can't encode character"),
    "unfinished": ('a: "x', "line 1: found unexpected end of stream"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    text, expected = HOSTILE[kind]
    assert expected in refusal(tmp_path, text)


def test_files_that_are_no_job_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"name: caf\xe9")
    for name, expected in (
        ("none", "no such file; expected a job file, such as jobs/demo.yaml"),
        ("pipe", "is not a file"),
        ("latin", "no UTF-8 at byte 9"),
    ):
        with pytest.raises(UserError, match=expected):
            read_job_file(tmp_path / name, (), COMMANDS, {}, "")


def test_the_history_may_lie_at_home(tmp_path: Path) -> None:
    assert read(tmp_path, "history: ~/h\nsteps: [{clean: }]").history == Path.home() / "h"


@pytest.mark.parametrize("step", ["{preview: {out: %s}}", "{clean: {folder: %s}}"])
def test_paths_of_steps_may_lie_at_home(tmp_path: Path, step: str) -> None:
    (only,) = read(tmp_path, f"steps: [{step % '~/a.png'}]").steps
    assert only.words[-1] == str(Path.home() / "a.png")


@pytest.mark.parametrize("history", ["s3://data/history", "%s/job.yaml"])
def test_a_history_is_a_folder_on_a_disk(tmp_path: Path, history: str) -> None:
    job = f"history: {history.replace('%s', str(tmp_path))}\nsteps: [{{clean: }}]"
    assert refusal(tmp_path, job).endswith(" on a disk")


def test_an_output_beside_the_history_has_another_name_than_the_job(tmp_path: Path) -> None:
    job = f"name: nightly\nhistory: {tmp_path}\nsteps: [{{augment: {{out: {tmp_path}/%s}}}}]"
    read(tmp_path, job % "photos")
    assert "is where the records of the job nightly are" in refusal(tmp_path, job % "nightly")
    job = "name: digits\nhistory: augmented\nsteps: [{augment: }]"
    assert "out: augmented/digits is where the records" in refusal(tmp_path, job)
    plan = AugmentConfig("digits", tmp_path)
    assert output_folder(plan) == default_out("augment", "digits").resolve()
    assert run_folder(None, None, "digits") == default_out("train", "digits").resolve()
    job = "name: labels\nhistory: runs\nsteps: [{train: {dataset: labels.csv}}]"
    assert "out: runs/labels is where the records" in refusal(tmp_path, job)


@pytest.mark.parametrize("step", ["augment: {dataset: %s}", "verify: {folder: a, dataset: %s}"])
def test_credentials_are_refused_before_they_are_logged(tmp_path: Path, step: str) -> None:
    said = refusal(tmp_path, f"steps: [{{{step % 's3://user:secret@data/photos'}}}]")
    assert "holds credentials" in said
    assert "secret" not in said


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"yaml: 4 mistakes$") as caught:
        read(tmp_path, "steps: [{augment: {copys: 1, limit: 0}}, {trian: }]\nnam: x")
    assert caught.value.mistakes == (
        "nam is not known; did you mean 'name'?",
        "step 1 (augment): limit: found 0, expected a whole number of at least 1",
        "step 1 (augment): copys is not known; did you mean 'copies'?",
        "step 2: trian is not known; did you mean 'train'?",
    )


def test_variables_that_are_not_set_hide_no_other_mistakes(tmp_path: Path) -> None:
    unset = "{augment: {out: '${A}', copies: '${B}'%s}}"
    for other, step, told in (
        (", copys: 1", "{clean: }", "step 1 (augment): copys is not known; did you mean 'copies'?"),
        ("", "{clean: 5}", "step 2: clean: found 5, expected options, each with its value"),
    ):
        with pytest.raises(UserError, match=r"yaml: 3 mistakes$") as caught:
            read(tmp_path, f"steps: [{unset % other}, {step}]")
        assert caught.value.mistakes == (
            "step 1 (augment): out: ${A} is not set: no environment variable A",
            "step 1 (augment): copies: ${B} is not set: no environment variable B",
            told,
        )
    with pytest.raises(UserError, match=r"yaml: 2 mistakes$") as caught:
        read(tmp_path, "steps: [{augment: {out: '${A}', copies: -1}}, {augment: {copies: -3}}]")
    assert caught.value.mistakes[1] == "step 2 (augment): copies: expected 0 to 65,535, got -3"


def test_one_mistake_made_many_times_takes_no_longer_than_its_file(tmp_path: Path) -> None:
    """Each was looked for in the whole text: 4,000 of them took an hour."""
    n = 4000
    with pytest.raises(UserError, match=f"yaml: {n:,} mistakes".replace(",", "")) as caught:
        read(tmp_path, "steps:\n" + "- clean:\n  folder: a\n" * n)
    assert caught.value.mistakes[1].startswith("line 4: step 2: found the keys clean, folder")


def test_an_option_after_a_dash_of_its_own_is_told_to_be_indented(tmp_path: Path) -> None:
    told = refusal(tmp_path, "steps:\n- augment:\n- image_size: 3")
    assert "line 3: step 2: image_size is an option; indent it further than the command" in told


def test_what_looks_like_an_option_in_a_value_stays_as_it_is(tmp_path: Path) -> None:
    told = refusal(tmp_path, "steps: [{augment: {out: 'ftp://x--copies/y'}}]")
    assert "ftp://x--copies/y: ftp:// is not known" in told


def test_a_changed_job_has_no_lines(tmp_path: Path) -> None:
    told = refusal(tmp_path, "steps: [{clean: }]", "steps={clean: }")
    assert told.startswith(f"{tmp_path}/job.yaml: steps: found the key clean, expected a list")


def test_all_variables_that_are_not_set_are_told_at_once(tmp_path: Path) -> None:
    job = "steps: [{augment: {out: '${A}/x', policy: '${'}}, {evaluate: {runs: [a, '${B}']}}]"
    with pytest.raises(UserError, match=r"yaml: 4 mistakes$") as caught:
        read(tmp_path, f"{job}\nhistory: '${{C}}'")
    assert caught.value.mistakes == (
        "step 1 (augment): out: ${A} is not set: no environment variable A",
        "step 1 (augment): policy: found '${', expected ${NAME}, or $${ for these two characters",
        "step 2 (evaluate): runs: ${B} is not set: no environment variable B",
        "history: ${C} is not set: no environment variable C",
    )


# What only the command knows of the values of its options.
UNFIT = {
    "{augment: {policy: 'flip()|rotat(degrees=3)'}}": "rotat",
    "{evaluate: {runs: [a], image-size: 0}}": "image-size 0: expected pixels such as 224",
    "{preview: {policy: missing.yaml}}": "missing.yaml",
    "{augment: {out: 'ftp://host/x'}}": "ftp://host/x: ftp:// is not known",
    "{augment: {copies: 0, original: false}}": "copies 0 original: false: nothing to write",
    "{augment: {keep: 3}}": "keep 3: is about published versions; give publish too",
    "{augment: {online: true, format: tfrecord}}": "online: writes no shards; leave out format",
    "{augment: {engine: tensorflow}}": "engine: shards are OpenCV's; leave it out",
    "{train: {verify: true}}": "verify: checks shards; give offline, or leave it out",
    "{ablate: {out: ~no-such-user/x}}": "Could not determine home directory",
    "{crossval: {mode: freeze}}": "model cnn: learns from nothing",
}


@pytest.mark.parametrize("step", UNFIT)
def test_values_that_a_step_would_refuse_are_refused_before_the_first(
    tmp_path: Path, step: str
) -> None:
    message = refusal(tmp_path, f"steps: [clean: {{}}, {step}]")
    assert message.startswith(f"{tmp_path / 'job.yaml'}: step 2 ({step[1:].split(':')[0]}): ")
    assert UNFIT[step] in message


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_several_mistakes_are_a_line_each_under_one_that_names_the_file(
    tmp_path: Path, log_format: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("steps: [{augment: {policy: flop()}}, {train: {image-size: 9x}}]")
    lines = run("run", path, "--log-format", log_format, code=2).stderr.splitlines()
    if log_format == "json":
        lines = [json.loads(line)["message"] for line in lines]
        lines = [f"pipeline: {lines[0]}", *(f"  {line}" for line in lines[1:])]
    assert lines[0] == f"pipeline: {path}: 2 mistakes"
    assert lines[1].startswith("  step 1 (augment): policy, 'flop()' at ")
    assert lines[2].startswith("  step 2 (train): image-size 9x: expected pixels")
    assert len(lines) == 3


TEXTS = st.text(max_size=12) | st.sampled_from(["${DATE}", "${HOME}", "$${", "1h", "parquet", "a"])
SCALARS = TEXTS | st.none() | st.booleans() | st.integers() | st.floats()
OPTIONS = sorted({option.name for command in COMMANDS.values() for option in command.options})
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXTS, SCALARS, max_size=2)
STEPS = st.dictionaries(
    st.sampled_from([*COMMANDS, "run"]),
    st.dictionaries(st.sampled_from(OPTIONS) | TEXTS, VALUES, max_size=4) | SCALARS,
    max_size=2,
)
JOBS = st.dictionaries(
    st.sampled_from(["name", "history", "deadline", "step"]) | TEXTS, VALUES, max_size=3
).flatmap(lambda body: st.lists(STEPS, max_size=3).map(lambda steps: {**body, "steps": steps}))


def good(option: Option) -> st.SearchStrategy[object]:
    """Values that the option takes."""
    low, high = option.low, option.high
    kinds: dict[type, st.SearchStrategy[object]] = {
        bool: st.booleans(),
        int: st.integers(None if low is None else int(low), None if high is None else int(high)),
        float: st.floats(low, high, allow_nan=False, allow_infinity=False),
        str: st.text(alphabet="abc 12.-", min_size=1),
    }
    if option.kind in kinds:
        one = kinds[option.kind]
    else:
        one = st.sampled_from([str(value) for value in option.kind])
    return st.lists(one, min_size=1, max_size=3) if option.is_list else one


@st.composite
def good_jobs(draw: st.DrawFn) -> str:
    """A file of steps with some of their options."""
    steps = []
    for command in draw(st.lists(st.sampled_from(list(COMMANDS.values())), min_size=1, max_size=3)):
        options = [o for o in command.options if o.is_required or draw(st.integers(0, 4)) == 0]
        steps.append({command.name: {o.name: draw(good(o)) for o in options}})
    return yaml.safe_dump({"steps": steps})


FILES = st.one_of(
    good_jobs(),
    JOBS.map(lambda body: yaml.safe_dump(body, allow_unicode=True)),
    JOBS.map(json.dumps),
    st.tuples(JOBS.map(yaml.safe_dump), st.integers(0, 200), TEXTS).map(
        lambda found: found[0][: found[1]] + found[2] + found[0][found[1] :]
    ),
    st.text(alphabet="[]{}:,-?&*!|>'\"%@` \n\t#ab1.${}", max_size=80),
)


def is_read_or_refused(text: str, path: Path) -> None:
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        job = read_job_file(path, (), COMMANDS, {"HOME": "/root"}, "2026-02-03")
    except UserError as err:
        assert len(str(err).splitlines()) == 1  # noqa: PT017
    else:
        assert VALID.is_valid(read_yaml(text))
        for line in words(job):
            assert all(isinstance(word, str) and "\0" not in word for word in line)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(text=FILES)
def test_any_file_is_a_job_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    is_read_or_refused(text, tmp_path_factory.getbasetemp() / "fuzzed.yaml")


@pytest.mark.slow
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
@given(text=FILES)
def test_ten_thousand_files_are_jobs_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    is_read_or_refused(text, tmp_path_factory.getbasetemp() / "fuzzed.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_example_jobs_are_valid(path: Path) -> None:
    assert VALID.is_valid(read_yaml(path.read_text()))
    assert read_job_file(path, (), COMMANDS, {"PHOTOS": "/photos"}, "2026-02-03").name == path.stem


def test_the_schema_is_one_and_is_what_the_command_prints() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(run("schema").stdout) == SCHEMA


def test_options_are_those_of_the_command_line_but_for_how_it_talks() -> None:
    known = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for name, command in COMMANDS.items():
        ours = {o.on or o.name: o.off for o in command.options}
        theirs = {
            p.opts[0]: next(iter(p.secondary_opts), None)
            for p in known[name].params
            if p.name not in LEFT_OUT
        }
        assert ours == theirs


def test_a_dry_run_prints_command_lines_for_a_shell_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("steps: [{augment: {out: 'a b', limit: 9}}, {clean: }]")
    command = [PIPELINE, "run", "job.yaml", "--dry-run", "--set", "augment.policy=flip()"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (
        done.stdout == "pipeline augment --out 'a b' --policy 'flip()' --limit 9\npipeline clean\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_the_history_is_not_begun_by_a_file_with_mistakes(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("steps: [{augment: {copys: 1}}]")
    history = f"history={tmp_path / 'history'}"
    said = run("run", tmp_path / "job.yaml", "--set", history, code=2).stderr
    assert "did you mean 'copies'?" in said
    assert not (tmp_path / "history").exists()
