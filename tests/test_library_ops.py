"""Transforms of albumentations: by name or from a saved file, seeded per sample and copy."""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from datasets.errors import PolicyError
from datasets.source import sample_keys
from pipeline.job import version_of
from pipeline.library_ops import LibraryStage, import_albumentations
from pipeline.policy import Policy, parse_policy

KEYS = sample_keys([f"s{i}" for i in range(20)])
FOUR = (
    "albumentations.GaussNoise(p=0.7)|albumentations.CoarseDropout(p=0.5)"
    "|albumentations.HueSaturationValue(p=0.8)|albumentations.ElasticTransform(p=0.3)"
)


def images_of(n: int = 20, channels: int = 3) -> list[np.ndarray]:
    images = np.random.default_rng(2).integers(0, 256, (n, 24, 31, channels), np.uint8)
    return [image[..., 0] if channels == 1 else image for image in images]


def apply(policy: Policy, images: list[np.ndarray], keys: np.ndarray, copy: int, seed: int = 0):
    return LibraryStage(policy.library).apply(list(images), seed, keys, copy)


def test_each_sample_and_copy_depends_on_itself_alone() -> None:
    policy = parse_policy(FOUR)
    images = images_of()
    whole, done = apply(policy, images, KEYS, 3)
    stage = LibraryStage(policy.library)
    for i in reversed(range(20)):  # another order, one by one, with a stage that was used before
        alone, own = stage.apply([images[i]], 0, KEYS[i : i + 1], 3)
        assert_array_equal(alone[0], whole[i])
        assert own[0] == done[i]
    other_copy, _ = apply(policy, images, KEYS, 4)
    other_seed, _ = apply(policy, images, KEYS, 3, seed=1)
    assert any((a != b).any() for a, b in zip(whole, other_copy, strict=True))
    assert any((a != b).any() for a, b in zip(whole, other_seed, strict=True))


def test_what_was_recorded_repeats_the_image_with_the_library_alone() -> None:
    images = images_of()
    out, done = apply(parse_policy("albumentations.GaussNoise(p=0.7)"), images, KEYS, 1)
    transform = import_albumentations().GaussNoise(p=0.7)
    n_applied = 0
    for image, result, text in zip(images, out, done, strict=True):
        (step,) = json.loads(text)
        transform.set_random_seed(step["seed"])
        assert_array_equal(transform(image=image)["image"], result)
        assert step["applied"] == bool((result != image).any())
        n_applied += step["applied"]
    assert 8 <= n_applied <= 19


def test_taking_a_library_op_out_leaves_the_seeds_of_the_others_alone() -> None:
    def seeds(text: str) -> list[int]:
        _, done = apply(parse_policy(text), images_of(), KEYS, 1)
        return [s["seed"] for d in done for s in json.loads(d) if "Dropout" in s["op"]]

    assert seeds(FOUR) == seeds("albumentations.CoarseDropout(p=0.5)")


def test_grey_images_stay_grey() -> None:
    images = images_of(channels=1)
    out, _ = apply(parse_policy("albumentations.GaussianBlur(p=1)"), images, KEYS, 1)
    assert {o.shape for o in out} == {(24, 31)}
    assert any((a != b).any() for a, b in zip(out, images, strict=True))


def test_groups_are_read_and_repeat() -> None:
    text = "albumentations.OneOf([albumentations.Blur(p=1), albumentations.ToGray(p=1)], p=1)"
    policy = parse_policy(text)
    assert parse_policy(str(policy)) == policy
    a, _ = apply(policy, images_of(), KEYS, 1)
    b, _ = apply(policy, images_of(), KEYS, 1)
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    grey = sum((x[..., 0] == x[..., 1]).all() for x in a)
    assert 2 < grey < 18


FLIPS = "[albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]"


@pytest.mark.parametrize(
    "group", [f"Sequential({FLIPS})", f"Compose({FLIPS})", f"SomeOf({FLIPS}, n=2)"]
)
def test_each_op_of_a_group_draws_for_itself(group: str) -> None:
    keys = sample_keys([str(i) for i in range(1000)])
    corner = np.zeros((4, 4, 3), np.uint8)
    corner[0, 0] = 255
    policy = parse_policy(f"albumentations.{group.replace(')]', ')], p=1')}")
    out, _ = apply(policy, [corner] * 1000, keys, 1)
    counts = np.sum([image[::3, ::3, 0] for image in out], 0).ravel() / 255  # a corner a case
    assert ((counts - 250) ** 2 / 250).sum() < 16.3  # chi-square of 3 degrees, 0.1 %


def test_a_group_says_what_it_did_and_the_library_alone_repeats_it() -> None:
    images, library = images_of(), import_albumentations()
    inner = "albumentations.Sequential([albumentations.Posterize(p=0.5)], p=1)"
    text = f"albumentations.OneOf([albumentations.GaussNoise(p=1), {inner}], p=0.7)"
    out, done = apply(parse_policy(text), images, KEYS, 1)
    group = library.OneOf(
        [library.GaussNoise(p=1), library.Sequential([library.Posterize(p=0.5)], p=1)], p=0.7
    )
    seen = set()
    for image, result, text in zip(images, out, done, strict=True):
        (step,) = json.loads(text)
        seed = step["seed"]
        group.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert_array_equal(group(image=image)["image"], result)
        assert step["applied"] == bool((result != image).any())
        seen.add(tuple(one["op"].partition(".")[2] for one in step["transforms"]))
        assert all(one["params"] for one in step["transforms"])
    assert seen == {(), ("GaussNoise",), ("Posterize",)}


def test_jobs_with_groups_alone_are_others_since_their_ops_draw_for_themselves() -> None:
    plain = version("augmentation-pipeline")
    assert version_of("standard") == version_of("albumentations.Blur(p=1.0)") == plain
    assert version_of(f"albumentations.OneOf({FLIPS})") == f"{plain}, groups 2"


def test_an_op_that_the_library_only_advises_against_is_taken() -> None:
    for name in ("ShiftScaleRotate", "PiecewiseAffine", "TimeReverse"):
        assert parse_policy(f"albumentations.{name}(p=0.5)").library[0].class_name == name
    with pytest.raises(PolicyError, match=r"Argument\(s\) 'limit' are not valid"):
        parse_policy("albumentations.ShiftScaleRotate(limit=3)")


@pytest.mark.parametrize("name", ["RGBShift", "SafeRotate", "PadIfNeeded"])
def test_options_that_the_library_saves_without_taking_them_are_left_out(
    tmp_path: Path, name: str
) -> None:
    library = import_albumentations()
    library.save(library.Compose([getattr(library, name)()]), tmp_path / "p.json")
    assert parse_policy(str(tmp_path / "p.json")).library[0].class_name == name
    saved = json.loads((tmp_path / "p.json").read_text())
    saved["transform"]["transforms"][0]["of_a_later_version"] = 1
    (tmp_path / "p.json").write_text(json.dumps(saved))
    with pytest.raises(PolicyError, match=r"Argument\(s\) 'of_a_later_version' are not valid"):
        parse_policy(str(tmp_path / "p.json"))


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_saved_by_albumentations_is_the_same_policy(tmp_path: Path, suffix: str) -> None:
    library = import_albumentations()
    path = tmp_path / f"policy.{suffix}"
    saved = library.Compose([library.GaussianBlur(p=0.5), library.CoarseDropout(p=0.25)])
    library.save(saved, path, data_format=suffix)
    from_file = parse_policy(str(path))
    assert [op.class_name for op in from_file.library] == ["GaussianBlur", "CoarseDropout"]
    again = parse_policy(str(from_file))
    assert again == from_file
    a, _ = apply(from_file, images_of(), KEYS, 1)
    b, _ = apply(again, images_of(), KEYS, 1)
    assert all((x == y).all() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not a file saved by albumentations"),
        ("[1, 2]", "not a file saved by albumentations"),
        ("!!python/object/apply:os.system ['true']", "not a file saved by albumentations"),
        ("transform: {__class_fullname__: os.system}", "is neither a transform of albumentations"),
    ],
)
def test_other_files_are_refused_and_never_executed(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with pytest.raises(PolicyError, match=expected):
        parse_policy(str(path))


@pytest.mark.parametrize("op", ["RandomCrop(height=8, width=8)", "Resize(height=9, width=9)"])
def test_ops_that_change_the_shape_are_refused(op: str) -> None:
    policy = parse_policy(f"albumentations.{op}")
    with pytest.raises(PolicyError, match="set --image-size instead"):
        apply(policy, images_of(1), KEYS[:1], 1)
