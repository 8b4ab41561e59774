"""What differs between two trainings, as the options that a user would change back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.job import differences
from trainers.run_reports import in_words
from trainers.transfer import FREEZE_EPOCHS, TransferConfig, own_options

# What is no option, or one of another name.
NAMES = {"name": "--model", "shape": "--image-size", "fold": "the fold", "devices": "the processor"}
# What comes with other data, and with another network.
OF_DATA = ("classes", "shape", "blocks", "policy", "augment_seed")
OF_MODEL = ("shape", "recipe", *asdict(TransferConfig()))
PROBES = ("probe", "network_probe")  # differ with threads, devices and versions


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> str:
    """`--seed was 0, now 1; --dropout was ...`, without what follows from what is named: the
    network's own values, and those that come with other data.

    before, now: `run`, where arithmetic may be left out, and `origin`, as in `config.json`.
    """
    old, new = options(before["run"]), options(now["run"])
    own_before, own_now = own_values(old), own_values(new)
    told, following = [], {"source", *PROBES}
    if old.get("source") != new["source"]:
        told.append(changed_data(before["origin"], now["origin"]))
        following |= {*OF_DATA}
    if old.get("name") != new["name"]:
        following |= {*OF_MODEL}
    for name, value in new.items():
        was = old.get(name)
        is_own = was in (None, own_before.get(name)) and value in (None, own_now.get(name))
        if was != value and name not in following and not (name in own_now and is_own):
            told.append(changed(name, was, value))
    return "; ".join(told) or "this processor computes otherwise"


def options(run: dict[str, Any]) -> dict[str, Any]:
    """Those of the network beside all others. Runs of earlier versions have fewer."""
    model = run.get("model") or {}
    flat = {k: v for k, v in (run | model).items() if k not in ("model", "transfer")}
    return flat | (model.get("transfer") or {})


def own_values(options: dict[str, Any]) -> dict[str, Any]:
    """What options are where nothing else is asked for, as the others are."""
    own = (options.get("recipe") or {}) | own_options(options.get("epochs") or 1)
    if options.get("mode") == "freeze":
        own["epochs"] = FREEZE_EPOCHS
    return {**own, "augment_seed": options.get("seed")}


def changed_data(before: dict[str, Any], now: dict[str, Any]) -> str:
    """By where they are found, since hashes tell nobody anything."""
    if before.get("dataset") != now["dataset"]:
        return f"the data was {in_words(before.get('dataset'))}, now {now['dataset']}"
    if before.get("limit") != now["limit"]:
        return changed("limit", before.get("limit"), now["limit"])
    return f"the images or labels of {now['dataset']} have changed"


def changed(name: str, was: Any, now: Any) -> str:
    if name == "versions":
        return differences(was or {}, now)
    if name == "recipe":
        return "another version made it, whose network learns in another way"
    if name == "blocks":
        return "--block-samples is another"
    if name == "weights":  # files are known by their hashes
        was, now = (str(weights)[:8] for weights in (was, now))
    if name == "shape":
        was, now = (shape and "x".join(map(str, shape[:2])) for shape in (was, now))
    option = NAMES.get(name, "--" + name.replace("_", "-"))
    return f"{option} was {in_words(was)}, now {in_words(now)}"
