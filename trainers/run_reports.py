"""`report.html`: what a run is worth, or several together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.job import differences
from pipeline.report import duration
from trainers.config import ARITHMETIC
from trainers.evaluate import CONFIG, ENSEMBLE, RESULT, Evaluation
from trainers.fit import best_epoch
from trainers.html_report import Cell, Picture, Section, Share, Table, percent, write_report
from trainers.intervals import points
from trainers.pictures import confused_pairs, confusion_counts

REPORT = "report.html"
SPLITS = {"test": "test", "val": "validation"}


def run_report(
    out: Path,
    result: dict[str, Any],
    found: Evaluation,
    classes: tuple[str, ...],
    epochs: list[dict[str, Any]],
) -> None:
    """Writes the report of one run, whose pictures and `config.json` are in its folder.

    result: What `result.json` will hold. found: The guesses that it is about.
    """
    config = json.loads((out / CONFIG).read_text())
    run, best = config["run"], best_epoch(epochs)
    figures = guess_figures(result)
    if result["split"] != "val":
        figures["validation accuracy"] = percent(result["val_accuracy"])
    figures |= {
        "epochs": f"{result['epochs']:,}",
        "training time": duration(result["seconds"]),
        "waiting for images": duration(result["input_seconds"]),
        "parameters": f"{result['parameters']:,}",
        "network": run["model"]["name"],
        "data set": data_set(config),
    }
    columns = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")
    curves = Section(
        "Curves",
        "The loss in training is what is minimized, on augmented images, with label smoothing and "
        "the penalties of the weights; in validation it is the mean negative log likelihood. "
        f"That was least after epoch {best}: {epochs[best - 1]['val_loss']:.4f}."
        + (" The weights are of that epoch." if run["patience"] is not None else ""),
        picture=Picture(out / "curves.png", "Loss and accuracy of each epoch, as in the table"),
    )
    header = ("epoch", "loss", "accuracy", "validation loss", "validation accuracy")
    table = Table(header, [[epoch[name] for name in columns] for epoch in epochs])
    sections = [
        curves,
        Section("Epochs", table=table, folded=True),
        *guess_sections(out, found, classes),
        settings(config),
        surroundings(run, result["environment"]),
    ]
    title = f"{out.name}: {run['model']['name']} on {data_set(config)}"
    command = config["origin"]["command"]
    is_member = (out.parent / ENSEMBLE).is_file() or {"crossval", "ablate"} & {*command[1:2]}
    note = before_repeating(config, is_member=bool(is_member))
    write_report(out / REPORT, title, figures, sections, command, note)


def ensemble_report(
    out: Path,
    result: dict[str, Any],
    found: Evaluation,
    classes: tuple[str, ...],
    members: Sequence[Path],
) -> None:
    """Writes the report of several runs whose guesses are averaged; they are complete."""
    configs = [json.loads((member / CONFIG).read_text()) for member in members]
    alone = [json.loads((member / RESULT).read_text()) for member in members]
    split, first, name = result["split"], alone[0], configs[0]["run"]["model"]["name"]
    # Of the members that went on with other arithmetic, if any did, the first speaks for all.
    config = next((of for of in configs if of["earlier"]), configs[0])
    seeds = {"seed": [of["run"]["seed"] for of in configs]}
    figures = guess_figures(result) | {
        "members": f"{len(members)}",
        "epochs of all": f"{sum(one['epochs'] for one in alone):,}",
        "training time of all": duration(sum(one["seconds"] for one in alone)),
        "waiting for images": duration(sum(one["input_seconds"] for one in alone)),
        "parameters of each": f"{first['parameters']:,}",
        "network": name,
        "data set": data_set(config),
    }
    rows: list[list[Cell]] = [
        [member.name, str(of["run"]["seed"]), Share(one[f"{split}_accuracy"]), one[f"{split}_loss"]]
        for member, of, one in zip(members, configs, alone, strict=True)
    ]
    rows.append(["all together", "", Share(found.accuracy), found.loss])
    table = Table(("member", "seed", f"{SPLITS[split]} accuracy", f"{SPLITS[split]} loss"), rows)
    text = (
        "Each member has a report of its own in its folder; here their probabilities are averaged."
    )
    sections = [
        Section("Members", text, table),
        *guess_sections(out, found, classes),
        settings(config | {"run": config["run"] | seeds}),
        surroundings(config["run"], first["environment"]),
    ]
    title = f"{out.name}: {len(members)} x {name} on {data_set(config)}"
    note = before_repeating(config, is_member=False)
    write_report(out / REPORT, title, figures, sections, config["origin"]["command"], note)


def crossval_report(
    out: Path,
    result: dict[str, Any],
    results: Sequence[dict[str, Any]],
    found: Evaluation,
    classes: tuple[str, ...],
) -> None:
    """Writes the report of a cross-validation, whose folds are complete."""
    config = json.loads((out / "fold-1" / CONFIG).read_text())
    accuracy, loss = result["accuracy"], result["loss"]
    figures = {
        "accuracy": percent(accuracy["mean"]),
        "95 % interval": (
            "none: all folds are equal"
            if accuracy["low"] is None
            else f"{percent(accuracy['low'])} to {percent(accuracy['high'])}"
        ),
        "deviation of folds": percent(accuracy["std"]),
        "loss": f"{loss['mean']:.4f}",
        "folds": str(result["folds"]),
        "images": f"{result['n']:,}",
        "training time of all": duration(result["seconds"]),
        "network": config["run"]["model"]["name"],
        "data set": data_set(config),
    }
    header = ("fold", "images", "accuracy", "loss", "epochs")
    rows: list[list[Cell]] = [
        [f"fold {i}", one["n"], Share(one["test_accuracy"]), one["test_loss"], one["epochs"]]
        for i, one in enumerate(results, 1)
    ]
    rows.append(["mean", "", Share(accuracy["mean"]), loss["mean"], ""])
    text = (
        "Each sample of the split train is tested once, by a network that has seen neither it nor "
        "a copy of it. The interval allows for folds that share most of their training samples "
        "(Nadeau and Bengio, 2003). Each fold has a report of its own in its folder."
    )
    picture = Picture(out / "folds.png", "Accuracy of each fold, their mean and its interval")
    sections = [
        Section("Folds", text, Table(header, rows), picture),
        *guess_sections(out, found, classes),
        settings(config | {"run": {k: v for k, v in config["run"].items() if k != "fold"}}),
        surroundings(config["run"], results[0]["environment"]),
    ]
    title = f"{out.name}: {config['run']['model']['name']} on {data_set(config)}, cross-validated"
    note = before_repeating(config, is_member=False)
    write_report(out / REPORT, title, figures, sections, config["origin"]["command"], note)


def ablation_report(out: Path, result: dict[str, Any], first: Path) -> None:
    """Writes the report of an ablation.

    first: The folder of one run in which nothing was left out.
    """
    config, whole = json.loads((first / CONFIG).read_text()), result["accuracy"]
    split, seeds = SPLITS[result["split"]], result["seeds"]
    figures = {
        f"{split} accuracy of all": percent(whole["mean"]),
        "parts": str(len(result["without"])),
        "seeds": str(len(seeds)),
        "network": config["run"]["model"]["name"],
        "data set": data_set(config),
    }

    def interval(cost: dict[str, Any]) -> str:
        if cost["low"] is None:
            return ""
        return f"{points(cost['low'])} to {points(cost['high'])}"

    learned = Share(result["training_accuracy"]["mean"])
    rows: list[list[Cell]] = [["nothing", Share(whole["mean"]), learned, "", "", ""]]
    for row in result["without"]:
        cost, failed = row["cost"], ", ".join(map(str, row["diverged"]))
        if cost is None:
            rows.append([row["part"], "", "", "", "", failed])
            continue
        shares = [Share(row[which]["mean"]) for which in ("accuracy", "training_accuracy")]
        rows.append([row["part"], *shares, points(cost["mean"]), interval(cost), failed])
    text = (
        "Each part is left out by itself, with the same seeds as nothing is: the same order, "
        "initial weights and draws of all other ops. So differences are taken seed by seed, and "
        "the intervals are of seeds, on these test images. One that holds 0 says that these seeds "
        "do not tell whether the part helps; of twenty intervals one misses the truth by chance. "
        "Training accuracy is of the epoch whose weights were kept, on images as augmented and "
        "with dropout, so it may be the lower one: where it is far above the other, the network "
        "has learned its images by heart."
    )
    header = (
        "left out",
        f"{split} accuracy",
        "training accuracy",
        "points lost",
        "95 % interval",
        "seeds that diverged",
    )
    picture = Picture(
        out / "ablation.png", "Points of accuracy lost without each part, and both accuracies"
    )
    sections = [
        Section("What each part is worth", text, Table(header, rows), picture),
        settings(config | {"run": config["run"] | {"seed": seeds}}),
    ]
    title = f"{out.name}: ablation of {config['run']['model']['name']} on {data_set(config)}"
    note = before_repeating(config, is_member=False)
    write_report(out / REPORT, title, figures, sections, config["origin"]["command"], note)


def guess_figures(result: dict[str, Any]) -> dict[str, str]:
    split, name = result["split"], SPLITS[result["split"]]
    return {
        f"{name} accuracy": percent(result[f"{split}_accuracy"]),
        f"{name} loss": f"{result[f'{split}_loss']:.4f}",
        f"{name} images": f"{result['n']:,}",
    }


def guess_sections(out: Path, found: Evaluation, classes: tuple[str, ...]) -> list[Section]:
    """What was taken for what, each class, and the mistakes."""
    counts = confusion_counts(found, len(classes))
    pairs = [pair for pair in confused_pairs(counts) if pair.n > 1][:3]
    often = "; ".join(
        f"{classes[pair.truth]} for {classes[pair.guess]}, {pair.n:,} of {pair.of:,}"
        for pair in pairs
    )
    n_wrong = int((found.labels != found.guesses).sum())
    absent = [name for name, n in zip(classes, counts.sum(1), strict=True) if not n]
    return [
        Section(
            "Confusion",
            "Rows are the true classes, columns the guesses."
            + (f" Most often mistaken: {often}." if often else ""),
            picture=Picture(out / "confusion.png", "Matrix of true classes and guesses"),
        ),
        Section(
            f"Classes ({len(classes):,})",
            "Worst first, each with the class that its images were most often taken for."
            + (f" Without an image: {', '.join(absent)}." if absent else ""),
            class_table(counts, classes),
        ),
        Section(
            "Mistakes",
            f"{n_wrong:,} of {len(found.labels):,} images."
            + (" Those that the network was surest of, with its guess first." if n_wrong else ""),
            picture=Picture(out / "mistakes.png", "Images of wrong guesses, with guess and truth"),
        ),
    ]


def class_table(counts: Any, classes: tuple[str, ...]) -> Table:
    """Images, share that was right, and the most frequent mistake of each class that occurs."""
    of = counts.sum(1)
    right = counts.diagonal() / np.maximum(1, of)
    mistakes = {pair.truth: pair for pair in reversed(confused_pairs(counts))}
    rows: list[list[Cell]] = []
    for i in sorted(np.flatnonzero(of).tolist(), key=lambda i: (right[i], -of[i], i)):
        pair = mistakes.get(i)
        taken_for = f"{classes[pair.guess]} ({pair.n:,})" if pair else ""
        rows.append([classes[i], int(of[i]), Share(float(right[i])), taken_for])
    return Table(("class", "images", "right", "most often taken for"), rows)


def settings(config: dict[str, Any]) -> Section:
    """All that the weights depend on but the machine, every default replaced by what it was."""
    run, origin = config["run"], config["origin"]
    options = {k: v for k, v in run.items() if k not in (*ARITHMETIC, "recipe", "model", "classes")}
    height, width, channels = options.pop("shape")
    rows = {
        "data set": origin["dataset"],
        "data folder": origin["data_dir"],
        "content of train and test": [digest[:16] for digest in options.pop("source") if digest],
        "images": f"{width} x {height} pixels, {channels} channel{'s' if channels > 1 else ''}",
        "classes": len(run["classes"]),
        "network": run["model"]["name"],
        **{k: v for k, v in run["model"].items() if k not in ("name", "transfer")},
        **(run["model"]["transfer"] or {}),
        "optimizer": run["recipe"]["optimizer"],
        "share of steps whose weights are averaged": run["recipe"]["averaged"],
        **dict(sorted(options.items())),
    }
    return Section("Configuration", table=named_values(rows), folded=True)


def surroundings(run: dict[str, Any], environment: dict[str, Any]) -> Section:
    """What the seconds, and the last bits, depend on."""
    probes = {"probe of images": run["probe"], "probe of the network": run["network_probe"]}
    rows = environment | {"gpus": run["gpus"]} | probes | run["versions"]
    return Section("Environment", table=named_values(rows), folded=True)


def named_values(values: dict[str, Any]) -> Table:
    return Table((), [[name.replace("_", " "), in_words(value)] for name, value in values.items()])


def in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_set(config: dict[str, Any]) -> str:
    """The name of a data set that has one, or of its folder or list."""
    return Path(config["origin"]["dataset"]).name


def before_repeating(config: dict[str, Any], is_member: bool) -> str:
    """What to know before the command is given again."""
    run, words = config["run"], [word.partition("=")[0] for word in config["origin"]["command"]]
    parts = []
    if is_member and words:
        parts.append("This makes all trainings of which this run is one.")
    parts.append("Where this run's folder still stands, give another --out.")
    if "--threads" not in words:
        parts.append(f"On a machine with other cores, add --threads {run['threads']}.")
    parts.append(
        "With the same data, versions and kind of processor the weights are the same, bit for bit."
    )
    if config["earlier"]:
        parts[-1] = (
            "The run went on with other arithmetic than it began with "
            f"({differences(config['earlier'][-1], run)}), so its weights will not come again."
        )
    return " ".join(parts)
