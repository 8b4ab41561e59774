"""`pipeline ablate`: what each op of a policy and each regularizer is worth, left out by itself.

Every part is left out with the same seeds as nothing is, and then the same order, initial weights
and draws of all other ops: what differs is the part. So differences are taken seed by seed.
"""

from __future__ import annotations

import csv
import io
import math
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets.errors import UserError
from datasets.schema import as_utf8, canonical_json
from datasets.storage import write_atomically
from pipeline.online import open_listing
from pipeline.plan import policy_of
from pipeline.report import Report
from pipeline.stream import import_tensorflow
from pipeline.workers import run
from trainers import joint_pictures
from trainers.backbones import IMAGENET, NONE
from trainers.config import TrainConfig, origin
from trainers.evaluate import RESULT
from trainers.fit import Diverged
from trainers.intervals import in_points, spread
from trainers.results import read_history
from trainers.run_folder import begin_whole
from trainers.run_reports import ablation_report
from trainers.train import train, training_folder

ABLATION, TABLE, PICTURE = "ablation.json", "ablation.csv", "ablation.png"
NOTHING = "nothing"
TRAINING = "training_accuracy"
# What each regularizer is without: name -> the network's options.
REGULARIZERS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.0},
    "weight decay": {"weight_decay": 0.0},
    "bias decay": {"bias_decay": 0.0},
    "activity L1": {"activity_l1": 0.0},
    "batch normalization": {"batch_norm": False},
}
# What a training says before it starts, which is the same of all of them.
BEFORE = {
    *("ignored", "empty_classes", "untrained_classes", "unused", "quarantined"),
    *("few_steps", "chosen_by_validation", "copies"),
}
# Within a process, whose random generators trainings would share: a worker may have many threads.
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Trial:
    """One training: what is left out, and with which seed."""

    left_out: str
    seed: int
    config: TrainConfig


@dataclass(frozen=True)
class Noted(Report):
    """Tells nobody, and keeps what is said before a training starts: (text, fields)."""

    quiet: bool = True
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def say(self, text: str, **fields: Any) -> None:
        if fields.get("event") in BEFORE:
            self.notes.append((text, fields))


def variants(config: TrainConfig) -> dict[str, TrainConfig]:
    """What is left out -> the training without it, nothing first; of a resolved config."""
    augment = config.data.augment
    policy = policy_of(augment)
    found = {NOTHING: config}
    for i, name in enumerate(policy.op_names):
        text = str(policy.without(i))
        data = replace(config.data, augment=replace(augment, policy=text))
        found[name] = replace(config, data=data)
    for name, options in REGULARIZERS.items():
        model = replace(config.model, **options)
        if model != config.model:
            found[name] = replace(config, model=model)
    if config.label_smoothing:
        found["label smoothing"] = replace(config, label_smoothing=0.0)
    return found


def trials(config: TrainConfig, n_seeds: int) -> list[Trial]:
    """Every training, seed after seed, so that an interrupted ablation has whole ones."""
    made = []
    for i in range(n_seeds):
        for name, variant in variants(config).items():
            augment = replace(variant.data.augment, seed=variant.data.augment.seed + i)
            seed = variant.seed + i
            data = replace(variant.data, augment=augment, order_seed=seed)
            folder = config.out / f"without-{name.replace(' ', '-')}" / f"seed-{seed}"
            # Of a worker that died the run goes on.
            one = replace(variant, data=data, seed=seed, out=folder, resume=True)
            made.append(Trial(name, seed, one))
    return made


def ablate(
    config: TrainConfig, n_seeds: int, scheduler: str | None, n_workers: int, report: Report
) -> str:
    """A table for people, once every training is done; one that was interrupted goes on.

    n_workers: Trainings at a time, each in a process of its own; with 1 in this one.
    scheduler: Address of a Dask scheduler whose workers train instead.
    Raises: UserError of each kind, as `train` does; Diverged if a training with nothing left out
      does, which leaves nothing to compare with.
    """
    if config.data.offline:
        raise UserError(
            f"--offline {config.data.offline}: shards have one policy; give the --dataset that "
            "they were made from"
        )
    config = made_portable(config)
    for option, seed, bits in (
        ("--seed", config.seed, 32),
        ("--augment-seed", config.data.augment.seed, 64),
    ):
        if seed + n_seeds > 2**bits:
            raise UserError(f"{option} {seed}: expected at most {2**bits - n_seeds}")
    todo = trials(config, n_seeds)
    if len(todo) == n_seeds:
        raise UserError(
            "nothing to leave out: the policy has no op, and the network no regularizer"
        )
    with training_folder(config):
        open_listing(config.data.augment, report)  # a mistake there claims no folder
        whole = {"without": list(variants(config)), "seeds": [config.seed, n_seeds]}
        begin_whole(config, ABLATION, whole, "ablation")
        results: dict[tuple[str, int], dict[str, Any] | None] = {}
        told: set[str] = set()
        is_local = scheduler is None and n_workers > 1
        workers = n_workers if is_local and not has_gpu(config.threads) else 0
        done = run(
            train_trial,
            todo,
            workers,
            scheduler,
            None,
            shared=config.out / ABLATION,
            say=report.say,
        )
        for trial, result, notes in done:
            for text, fields in notes:
                if text not in told:
                    report.say(text, **fields)
                    told.add(text)
            if result is None and trial.left_out == NOTHING:
                raise Diverged(
                    f"{trial.config.out}: the training with nothing left out diverged; give a "
                    f"lower --lr than {config.lr:g}, and another --out"
                )
            results[trial.left_out, trial.seed] = result
            worth = "diverged" if result is None else f"accuracy {accuracy_of(result):.4f}"
            report.say(
                f"{len(results)} of {len(todo)}: {trial.left_out} left out, seed {trial.seed}: "
                f"{worth}",
                event="trial",
                without=trial.left_out,
                seed=trial.seed,
                accuracy=result and accuracy_of(result),
            )
        return write_ablation(config, n_seeds, results)


def made_portable(config: TrainConfig) -> TrainConfig:
    """The same for a worker in another folder: absolute paths, and the policy itself."""
    augment, model = config.data.augment, config.model
    policy = str(policy_of(augment))
    dataset = str(origin(config)["dataset"])
    augment = replace(augment, policy=policy, dataset=dataset, data_dir=absolute(augment.data_dir))
    if model.transfer:
        weights = model.transfer.weights
        if weights not in (IMAGENET, NONE):
            weights = str(absolute(Path(weights)))
        features = model.transfer.features and absolute(model.transfer.features)
        model = replace(model, transfer=replace(model.transfer, weights=weights, features=features))
    return replace(config, data=replace(config.data, augment=augment), model=model)


def absolute(path: Path) -> Path:
    return path.expanduser().resolve()


def has_gpu(n_threads: int) -> bool:
    """Trainings of several processes would each want all memory of a GPU."""
    return bool(import_tensorflow(n_threads).config.list_physical_devices("GPU"))


def train_trial(
    trial: Trial,
) -> tuple[Trial, dict[str, Any] | None, list[tuple[str, dict[str, Any]]]]:
    """The trial, its result and what was said before, in this process or a worker's. The result is
    None if the training diverged."""
    report = Noted()
    try:
        with ONE_AT_A_TIME:
            result = train(trial.config, 1, report, is_part=True)
            learned = training_accuracy(trial.config.out, result)
            return trial, result | {TRAINING: learned}, report.notes
    except Diverged:
        return trial, None, report.notes


def training_accuracy(out: Path, result: dict[str, Any]) -> float:
    """That of the epoch whose weights were kept, on images as augmented and with dropout."""
    epochs = read_history(out)
    return epochs[int(result.get("best_epoch", len(epochs))) - 1]["accuracy"]


def accuracy_of(result: dict[str, Any]) -> float:
    return float(result[f"{result['split']}_accuracy"])


def write_ablation(
    config: TrainConfig, n_seeds: int, results: dict[tuple[str, int], dict[str, Any] | None]
) -> str:
    """Writes figures and the picture; the table. With nothing left out all have a result."""
    seeds = [config.seed + i for i in range(n_seeds)]
    wholes = {seed: one for seed in seeds if (one := results[NOTHING, seed])}
    rows: list[dict[str, Any]] = []
    for name in list(variants(config))[1:]:
        without = [(seed, results[name, seed]) for seed in seeds]
        ended = {seed: accuracy_of(one) for seed, one in without if one is not None}
        costs = [accuracy_of(wholes[seed]) - accuracy for seed, accuracy in ended.items()]
        rows.append(
            {
                "part": name,
                "accuracy": spread(list(ended.values()), is_share=True) if ended else None,
                TRAINING: training_spread([one for _, one in without if one is not None]),
                "cost": spread(costs) if ended else None,
                "diverged": [seed for seed in seeds if seed not in ended],
            }
        )
    rows.sort(key=lambda row: -math.inf if row["cost"] is None else -row["cost"]["mean"])
    whole = spread([accuracy_of(result) for result in wholes.values()], is_share=True)
    split = str(wholes[seeds[0]]["split"])
    learned = training_spread(list(wholes.values()))
    result = {"split": split, "seeds": seeds, "accuracy": whole, TRAINING: learned, "without": rows}
    write_atomically(config.out / TABLE, as_csv(result))
    joint_pictures.contributions(result, config.out / PICTURE)
    ablation_report(config.out, result, trials(config, n_seeds)[0].config.out)
    write_atomically(config.out / RESULT, as_utf8(canonical_json(result)))
    return table(config, result)


def training_spread(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    return spread([one[TRAINING] for one in results], is_share=True) if results else None


def as_csv(result: dict[str, Any]) -> bytes:
    """A line for nothing left out and each part: shares of 1."""
    file = io.StringIO(newline="")
    lines = csv.writer(file)
    figures = ("mean", "std", "low", "high")
    of_each = [*figures, *(f"{which}_{name}" for which in ("cost", "training") for name in figures)]
    lines.writerow(["without", *of_each])
    nothing = {"part": NOTHING, **result, "cost": dict.fromkeys(figures, 0.0)}
    for row in (nothing, *result["without"]):
        of_row = [row[which] or {} for which in ("accuracy", "cost", TRAINING)]
        lines.writerow([row["part"], *(of.get(name) for of in of_row for name in figures)])
    return file.getvalue().encode()


def table(config: TrainConfig, result: dict[str, Any]) -> str:
    rows, n_seeds = result["without"], len(result["seeds"])
    width = max(map(len, [NOTHING, *(row["part"] for row in rows)]))
    lines = [
        f"{'left out':{width}}  {result['split'] + ' accuracy':13}  in training  points lost "
        "without it (95 % interval)"
    ]

    def accuracies(row: dict[str, Any]) -> str:
        return f"{100 * row['accuracy']['mean']:11.1f} %  {100 * row[TRAINING]['mean']:9.1f} %"

    lines.append(f"{NOTHING:{width}}  {accuracies(result)}")
    for row in rows:
        failed = f"diverged with {len(row['diverged'])} of {n_seeds} seeds"
        if row["cost"] is None:
            lines.append(f"{row['part']:{width}}  {'':26}  {failed}")
            continue
        worth = f"{accuracies(row)}  {in_points(row['cost'])}"
        lines.append(f"{row['part']:{width}}  {worth}{', ' + failed if row['diverged'] else ''}")
    seeds = f"{n_seeds} seeds, compared seed by seed" if n_seeds > 1 else "one seed"
    return "\n".join([*lines, f"{config.out}: {seeds}; in training: as augmented, with dropout"])
