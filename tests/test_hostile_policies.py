"""Policies that somebody else wrote: each can be stored, or one line says what is wrong with it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasets.errors import PolicyError
from pipeline.ops import OPS
from pipeline.policy import PRESETS, parse_policy
from pipeline.trial import try_out
from tests.running import run, start, wait_until

SECONDS = 20  # more is a hang
NAMES = st.sampled_from(
    [
        *(*OPS, *PRESETS, "fill", "albumentations", "Blur", "Compose", "OneOf", "BasicTransform"),
        *("core", "_x", "__class__", "__builtins__", "os", "degrees", "x", "p", "mode", "self"),
    ]
)
NUMBERS = st.one_of(
    st.integers(-(10**400), 10**400).map(str),
    st.integers(0, 16**5000).map(hex),
    st.floats().map(str),
    st.sampled_from(
        ["1e400", "-1e400", "1e-400", "nan", "inf", "9" * 5000, "1_0", "١٢", "3j", "0777"]
    ),
)
TEXTS = st.text(max_size=20).map(repr) | st.text(max_size=20) | st.binary(max_size=9).map(repr)
LEAVES = st.one_of(NUMBERS, NAMES, TEXTS, st.sampled_from(["None", "True", "...", "{}", "\0"]))


def grown(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Python that looks like a policy, and sometimes is one."""
    pairs = st.tuples(NAMES, parts).map("=".join)
    given_options = st.lists(parts | pairs, max_size=4).map(", ".join)
    calls = st.tuples(NAMES, given_options).map(lambda call: f"{call[0]}({call[1]})")
    return st.one_of(
        calls,
        calls.map("albumentations.{}".format),
        st.lists(parts, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(parts, min_size=1, max_size=4).map("|".join),
        st.tuples(parts, st.sampled_from("+-*|.:=,[({@&~ \n")).map("".join),
        st.tuples(st.sampled_from(["(", "[", "-", "not ", "~"]), st.integers(1, 4000), parts).map(
            lambda deep: deep[0] * deep[1] + deep[2]
        ),
        st.tuples(parts, st.integers(1, 3000)).map(
            lambda many: "|".join([many[0]] * many[1])[:20_000]
        ),
    )


POLICIES = st.recursive(LEAVES, grown, max_leaves=12) | st.text(max_size=200)


@contextmanager
def ends_in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(text: str) -> None:
    told = ""
    with ends_in_time():
        try:
            policy = parse_policy(text)
        except PolicyError as err:
            told = str(err)
        else:
            assert parse_policy(str(policy)) == policy
    assert told.isprintable()


FUZZ = settings(suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@settings(FUZZ)
@given(st.text(max_size=60))
@example("'\x1b[31m'")  # Python, unlike nearly all that is drawn
def test_any_text_is_a_policy_or_one_line_about_it(text: str) -> None:
    check(text)


@settings(FUZZ, max_examples=300)
@given(POLICIES)
def test_any_policy_can_be_stored_or_is_refused(text: str) -> None:
    check(text)


@pytest.mark.slow
@settings(FUZZ, max_examples=10_000)
@given(POLICIES)
def test_any_of_ten_thousand_policies_can_be_stored_or_is_refused(text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rotate(degrees=" + "9" * 400 + ")", "a number beyond 2e+308"),
        ("rotate(degrees=0x" + "f" * 6000 + ")", "a number beyond 2e+308"),
        ("albumentations.Affine(translate_px=1e400)", "a number beyond 2e+308"),
        ("albumentations.CoarseDropout(fill={1, 2})", "{1, 2} is not a plain value"),
        ("|".join(["flip()"] * 1400), "48,999 characters with every option written out"),
        ("albumentations.BasicTransform()", "refuses .*: NotImplementedError"),
        ("albumentations.core()", "is not a transform of albumentations"),
        ("albumentations.__builtins__()", "is not a transform of albumentations"),
        ("albumentations.os.system('true')", "is not the name of a transform"),
    ],
)
def test_what_could_not_be_stored_is_refused(text: str, expected: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(expected).replace(r"\.\*", ".*")):
        parse_policy(text)


BOMB = "t0: &t0 {__class_fullname__: Blur}\n" + "".join(
    f"t{i + 1}: &t{i + 1} {{__class_fullname__: Sequential, transforms: "
    f"[{', '.join([f'*t{i}'] * 9)}]}}\n"
    for i in range(9)
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{BOMB}transform: *t9", "holds more than 10,000 values"),
        ("transform: &a {__class_fullname__: Sequential, transforms: [*a]}", "holds more than"),
        ("transform: " + "[" * 1500, "maximum recursion depth"),
        ("x" * 100_001, "100,001 bytes, at most 100,000 are read"),
        ("transform: {__class_fullname__: CoarseDropout, fill: .nan}", "nan is not a plain value"),
        ("transform: {__class_fullname__: Lambda, image: 0x" + "f" * 6000 + "}", "a number beyond"),
        ("transform: {__class_fullname__: 'Blur()|albumentations.Blur'}", "nor an option"),
        ("transform: {__class_fullname__: Blur, 'p=1)|albumentations.Blur(p': 1}", "nor an option"),
        ("transform: {__class_fullname__: Compose}", "no 'transforms'"),
        ("transform: !!python/name:os.system", "could not determine a constructor"),
        ("transform: {__class_fullname__: 2020-01-01}", "not a file saved by albumentations.save"),
    ],
)
def test_a_saved_policy_that_is_none_is_refused(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with ends_in_time(), pytest.raises(PolicyError, match=f"{path}: .*{re.escape(expected)}"):
        parse_policy(str(path))


def test_what_is_no_regular_file_is_no_saved_policy(tmp_path: Path) -> None:
    (tmp_path / "device.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("device.json", "pipe.yaml"):
        with ends_in_time(), pytest.raises(PolicyError, match="not a regular file"):
            parse_policy(str(tmp_path / name))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("CoarseDropout(num_holes_range=(10000000, 10000000))", "takes more than 1 s"),
        (
            "MotionBlur(blur_limit=(100001, 100001))",
            "cannot run on an image .*: Unable to allocate",
        ),
    ],
)
def test_an_op_that_takes_all_time_or_memory_is_found_out_first(op: str, expected: str) -> None:
    policy = parse_policy(f"albumentations.{op}")
    with ends_in_time(), pytest.raises(PolicyError, match=expected):
        try_out(policy.library, [(32, 32, 3)], seconds=1)


CROP = "albumentations.RandomCrop(height=8, width=8, p=%s)"


@pytest.mark.parametrize(
    "group", ["Sequential([%s])", "OneOf([albumentations.Transpose(p=1), %s])", "SomeOf([%s], n=1)"]
)
def test_what_happens_rarely_in_a_group_is_found_out_first(group: str) -> None:
    policy = parse_policy(f"albumentations.{group % CROP % 0.001}")
    with pytest.raises(PolicyError, match=r"turned \(32, 32, 3\) uint8 into \(8, 8, 3\)"):
        try_out(policy.library, [(32, 32, 3)])


@pytest.mark.parametrize(
    "group",
    [
        f"Sequential([{CROP % 1}, albumentations.Resize(height=32, width=32, p=1)])",
        f"OneOf([albumentations.Transpose(p=1), {CROP % 0}])",
    ],
)
def test_what_never_happens_in_a_group_is_not_held_against_it(group: str) -> None:
    try_out(parse_policy(f"albumentations.{group}").library, [(32, 32, 3)])


def test_what_is_tried_out_does_not_outlive_the_command(tmp_path: Path) -> None:
    op = "albumentations.CoarseDropout(num_holes_range=(10000000, 10000000))"
    command = start("augment", "--policy", op, "--out", tmp_path / "out")
    children: list[psutil.Process] = []

    def is_trying() -> bool:
        children[:] = psutil.Process(command.pid).children()
        return any("pipeline.trial" in child.cmdline() for child in children)

    wait_until(is_trying, "the trial")
    command.kill()
    command.communicate()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_such_an_op_is_told_in_one_line(tmp_path: Path) -> None:
    op = "albumentations.PadIfNeeded(min_height=1000000, min_width=1000000)"
    lines = run("augment", "--policy", op, "--out", tmp_path / "out", code=2).stderr.splitlines()
    assert len(lines) == 1
    assert "cannot run on an image" in lines[0]
