"""`report.html`: one well-formed file without references, in which every name is only a name."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report, duration
from tests.running import run, write_photos
from trainers.evaluate import Evaluation, evaluation
from trainers.html_report import Picture, Section, Share, Table, write_report
from trainers.pictures import Pair, confused_pairs, confusion, confusion_counts, mistakes
from trainers.run_reports import class_table

VOID = {"br", "hr", "img", "link", "meta", "wbr"}
HOSTILE = ("<script>alert(1)<", "$x$ {{ 7 * 7 }}", '"><img src=x onerror=alert(1)>')
JOB = ("train", "--epochs", 1, "--threads", 2, "--model", "textbook", "--quiet")


class Page(HTMLParser):
    """What a browser makes of a page: elements with attributes, all text, and text by element."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in {*self.open}:
            self.texts[tag][-1] += data

    @property
    def text(self) -> str:
        """What is read, each row of lines that are not empty."""
        return "\n".join(filter(None, map(str.strip, self.texts["main"][0].splitlines())))

    def pictures(self) -> list[bytes]:
        uris = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        assert all(uri.startswith("data:image/png;base64,") for uri in uris)
        return [base64.b64decode(uri.partition(",")[2], validate=True) for uri in uris]

    def command(self) -> list[str]:
        return shlex.split(self.texts["pre"][0])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run on classes with hostile names, and its command."""
    folder = tmp_path_factory.mktemp("hostile")
    photos = write_photos(folder / "it's photos & more", 60, HOSTILE)
    job = [
        *map(str, (*JOB, "--dataset", photos, "--image-size", 16, "--policy", "flip()|rotate()"))
    ]
    job += ["--out", str(folder / "a $run <b>")]
    run(*job, "--resume")
    return folder / "a $run <b>", job


def test_a_report_is_well_formed_and_refers_to_nothing(hostile: tuple[Path, list[str]]) -> None:
    page = Page(hostile[0] / "report.html")
    assert page.source.startswith("<!doctype html>")
    references = ("src", "href", "srcset", "action", "data", "poster", "background")
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        named = [attributes[name] or "" for name in references if name in attributes]
        assert all(value.startswith("data:") for value in named)
    assert "@import" not in page.source
    assert not re.search(r"url\(\s*['\"]?(?!data:)", page.source)


def test_names_are_shown_as_they_are(hostile: tuple[Path, list[str]]) -> None:
    page = Page(hostile[0] / "report.html")
    assert {*HOSTILE} <= {*page.texts["th"]}
    assert page.texts["h1"] == ["a $run <b>: textbook on it's photos & more"]
    assert page.texts["title"] == page.texts["h1"]
    assert [tag for tag, _ in page.elements].count("img") == 3


def test_the_command_is_the_one_that_was_given(hostile: tuple[Path, list[str]]) -> None:
    out, job = hostile
    assert Page(out / "report.html").command() == ["pipeline", *job]
    assert json.loads((out / "config.json").read_text())["origin"]["command"] == ["pipeline", *job]


def test_every_picture_of_the_folder_is_in_the_report(hostile: tuple[Path, list[str]]) -> None:
    out, _ = hostile
    shown = Page(out / "report.html").pictures()
    assert sorted(shown) == sorted(path.read_bytes() for path in out.glob("*.png"))
    for data in shown:
        with Image.open(io.BytesIO(data)) as image:
            image.load()


def test_figures_are_those_of_the_result(hostile: tuple[Path, list[str]]) -> None:
    out, _ = hostile
    page, result = Page(out / "report.html"), json.loads((out / "result.json").read_text())
    figures = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert result["split"] == "test"
    assert figures["test accuracy"] == f"{100 * result['test_accuracy']:.2f} %"
    assert figures["test images"] == f"{result['n']:,}"
    assert figures["parameters"] == f"{result['parameters']:,}"
    assert figures["training time"] == duration(result["seconds"])
    for name, share in result["per_class"].items():
        assert re.search(rf"{re.escape(name)}\d+{100 * share:.1f} %", page.text)


@pytest.mark.slow
def test_reports_of_an_ensemble_name_the_command_of_the_whole(tmp_path: Path) -> None:
    job = ["train", "--limit", "200", "--epochs", "1", "--model", "textbook", "--quiet"]
    job += ["--ensemble", "2", "--seed", "7", "--out", str(tmp_path / "two")]
    run(*job)
    pages = [Page(tmp_path / "two" / name / "report.html") for name in ("", "member-0", "member-1")]
    for page in pages:
        assert page.command() == ["pipeline", *job]
    assert "This makes all trainings of which this run is one" not in pages[0].text
    assert all(
        "This makes all trainings of which this run is one" in page.text for page in pages[1:]
    )
    assert {"member-0", "member-1", "all together"} <= {*pages[0].texts["th"]}
    assert "seed7, 8" in pages[0].text
    assert len(pages[0].pictures()) == 2


def test_other_reports_are_made_of_sections(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (30, 20)).save(picture, format="PNG")
    (tmp_path / "a.png").write_bytes(picture.getvalue())
    rows = [["<b>", 1234, 0.5, Share(0.25), "0.91 ± 0.02"], ["two", 5, 1.0, Share(1), ""]]
    sections = [
        Section("Folds", "A & B.", Table(("fold", "n", "loss", "right", "spread"), rows)),
        Section("Bytes", picture=Picture(picture.getvalue(), 'a "picture"')),
        Section("Path", picture=Picture(tmp_path / "a.png", "the same"), folded=True),
    ]
    write_report(tmp_path / "r.html", "<i>title", {"mean & spread": "1 < 2"}, sections)
    page = Page(tmp_path / "r.html")
    assert page.texts["h1"] == ["<i>title"]
    assert page.texts["dt"] + page.texts["dd"] == ["mean & spread", "1 < 2"]
    assert page.texts["td"] == [
        "1,234",
        "0.5000",
        "25.0 %",
        "0.91 ± 0.02",
        "5",
        "1.0000",
        "100.0 %",
        "",
    ]
    assert page.pictures() == [picture.getvalue()] * 2
    first = next(attributes for tag, attributes in page.elements if tag == "img")
    assert (first["alt"], first["width"], first["height"]) == ('a "picture"', "30", "20")
    assert page.texts["summary"] == ["Path"]
    assert "pre" not in page.texts


def guessed(labels: list[int], guesses: list[int], n_classes: int) -> Evaluation:
    probabilities = np.eye(n_classes, dtype=np.float32)[guesses]
    right = np.array(labels) == np.array(guesses)
    return Evaluation(np.array(labels), probabilities, float(right.mean()), 0.0, {})


def test_pairs_are_counted_by_hand_and_classes_come_worst_first() -> None:
    found = guessed([0, 0, 0, 0, 1, 1, 2], [0, 1, 1, 2, 1, 1, 0], 4)
    counts = confusion_counts(found, 4)
    assert counts.toarray().tolist() == [[1, 2, 1, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert confused_pairs(counts) == [Pair(0, 1, 2, 4), Pair(2, 0, 1, 1), Pair(0, 2, 1, 4)]
    assert class_table(counts, ("a", "b", "c", "never")).rows == [
        ["c", 1, Share(0.0), "a (1)"],
        ["a", 4, Share(0.25), "b (2)"],
        ["b", 2, Share(1.0), ""],
    ]


def test_a_hundred_thousand_classes_are_drawn_without_a_cell_for_each_pair(tmp_path: Path) -> None:
    n, labels, guesses = 100_000, [3, 3, 3, 99_999], [3, 500, 500, 99_999]
    probabilities = np.zeros((len(labels), n), np.float32)
    probabilities[range(len(labels)), guesses] = 1
    found = Evaluation(np.array(labels), probabilities, 0.5, 0.0, {})
    classes = tuple(map(str, range(n)))
    confusion(found, classes, tmp_path / "confusion.png")  # all cells would take 80 GB
    assert (tmp_path / "confusion.png").stat().st_size > 0
    assert class_table(confusion_counts(found, n), classes).rows == [
        ["3", 3, Share(1 / 3), "500 (2)"],
        ["99999", 1, Share(1.0), ""],
    ]


def test_the_mistakes_that_a_network_was_surest_of_come_first() -> None:
    source = open_images(AugmentConfig("digits", Path("unused"), limit=9), "none", Report())
    shown = np.array([8, 2, 5, 3])
    truth = source.labels[shown]
    guesses = (truth + np.array([1, 0, 1, 2])) % 10
    probabilities = np.zeros((4, 10), np.float32)
    for row, (guess, sure) in enumerate(zip(guesses, [0.5, 0.99, 0.9, 0.7], strict=True)):
        probabilities[row] = (1 - sure) / 9
        probabilities[row, guess] = sure
    found = mistakes(evaluation(source, shown, probabilities), source, shown)
    assert found.title == "3 of 4 wrong, the surest first"
    (row,) = found.rows
    for tile, (i, sure) in zip(row, [(2, "90%"), (3, "70%"), (0, "50%")], strict=True):
        name = source.ids[shown[i]]
        assert tile.caption == f"{guesses[i]} ({sure})  is {truth[i]}\n{name}"
        assert_array_equal(tile.image, source.images(shown[[i]], 0)[0])


@pytest.mark.parametrize("n_classes", [2, 30, 31, 200])
def test_confusion_of_any_number_of_classes_is_drawn(tmp_path: Path, n_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(4 * n_classes) % n_classes
    guesses = np.where(rng.random(len(labels)) < 0.7, labels, (labels + 1) % n_classes)
    names = tuple(f"{HOSTILE[i % 3]}_{i}_Black_footed_Albatross" for i in range(n_classes))
    found = guessed(labels.tolist(), guesses.tolist(), n_classes)
    confusion(found, names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert (np.asarray(image.convert("L")) < 128).any()
        assert max(image.size) < 2000
