"""How a backbone is trained on: what learns in which epochs, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.errors import UserError
from pipeline.default_out import FEATURES_FOLDER
from trainers.backbones import BACKBONES, IMAGENET, NONE, stages_of, weights_digest

BODY_RATE = 0.1  # of the head's learning rate
FREEZE_EPOCHS = 60  # of the head alone, which take next to no time
# Of each mode, the options that it has.
MODES = {
    "freeze": ("copies", "features"),
    "fine-tune": ("layer_decay",),
    "two-phase": ("head_epochs", "unfreeze", "layer_decay"),
}


@dataclass(frozen=True)
class TransferConfig:
    """The options of a backbone. What is None is the mode's own, or none of its options.

    weights: `imagenet`, `none`, or a file of weights without the top.
    alpha: Width, of MobileNet and MobileNetV2.
    mode: `freeze`: the head alone learns. `fine-tune`: all does. `two-phase`: the head, then the
      top stages too.
    head_epochs: Of the first of two phases. unfreeze: Stages that learn in the second.
    layer_decay: What a stage's learning rate is multiplied by, seen from the one above it.
    copies: Online, of `freeze`: augmented copies of each sample, whose features are kept.
    features: Of `freeze`: the folder under which they are kept.
    """

    weights: str = IMAGENET
    alpha: float = 1.0
    mode: str = "two-phase"
    head_epochs: int | None = None
    unfreeze: int | None = None
    layer_decay: float | None = None
    copies: int | None = None
    features: Path | None = None


@dataclass(frozen=True)
class Phase:
    """Epochs start to stop - 1, in which the same layers learn.

    n_stages: So many of a backbone's, from the top; None: all layers that there are.
    """

    start: int
    stop: int
    n_stages: int | None = None


def own_options(n_epochs: int) -> dict[str, Any]:
    """What the options of modes are where nothing else is asked for."""
    return {
        "head_epochs": max(1, n_epochs // 4),
        "unfreeze": 2,
        "layer_decay": 1.0,
        "copies": 4,
        "features": FEATURES_FOLDER,
    }


def resolved_transfer(
    config: TransferConfig, name: str, n_epochs: int, is_offline: bool
) -> TransferConfig:
    """The same, with every option of its mode.

    Raises: UserError for what does not fit the backbone or the mode.
    """
    own = own_options(n_epochs)
    has = [o for o in MODES[config.mode] if not (o == "copies" and is_offline)]
    for option in own:
        if getattr(config, option) is not None and option not in has:
            why = "shards bring theirs" if option == "copies" and is_offline else "has no such"
            flag = "--" + option.replace("_", "-")
            raise UserError(f"{flag}: --mode {config.mode} {why}; leave it out")
    if config.mode == "two-phase" and n_epochs < 2:
        raise UserError(
            f"--epochs {n_epochs}: each phase of --mode two-phase needs one; give more, or --mode "
            "freeze or fine-tune"
        )
    missing = {option: own[option] for option in has if getattr(config, option) is None}
    config = replace(config, **missing)
    if config.head_epochs is not None and config.head_epochs >= n_epochs:
        raise UserError(
            f"--head-epochs {config.head_epochs}: of {n_epochs} epochs some must be left for the "
            "second phase; give more --epochs"
        )
    known = BACKBONES[name]
    n_stages = len(known.stages) + 1
    if config.unfreeze is not None and config.unfreeze > n_stages:
        raise UserError(f"--unfreeze {config.unfreeze}: {name} has {n_stages} stages; give fewer")
    if config.alpha != 1 and not known.alphas:
        raise UserError(f"--alpha {config.alpha:g}: {name} has one width; leave it out")
    if config.weights == IMAGENET and known.alphas and config.alpha not in known.alphas:
        widths = ", ".join(f"{alpha:g}" for alpha in known.alphas)
        raise UserError(
            f"--alpha {config.alpha:g}: ImageNet's weights of {name} are for {widths}; choose one, "
            "or give --weights none"
        )
    weights_digest(config.weights)
    return config


def phases(config: TransferConfig | None, n_epochs: int) -> list[Phase]:
    """The phases of a training, one after another; a network that is no backbone has one."""
    if config is None or config.mode == "fine-tune":
        return [Phase(0, n_epochs)]
    if config.mode == "freeze":
        return [Phase(0, n_epochs, 0)]
    head = config.head_epochs or 0
    return [Phase(0, head, 0), Phase(head, n_epochs, config.unfreeze)]


def unfreeze(model: Any, name: str, config: TransferConfig, phase: Phase) -> dict[str, float]:
    """Lets the phase's layers learn, and no others; variable's path -> share of the learning rate.

    With weights, batch normalization keeps statistics, scale and shift: small data sets spoil them.
    """
    from keras import layers

    rates, stages = {}, stages_of(model, name)
    n_learning = len(stages) if phase.n_stages is None else phase.n_stages
    for above, stage in enumerate(reversed(stages)):
        for layer in stage:
            is_kept = config.weights != NONE and isinstance(layer, layers.BatchNormalization)
            layer.trainable = above < n_learning and not is_kept
            for variable in layer.trainable_variables:
                rates[variable.path] = BODY_RATE * (config.layer_decay or 1.0) ** above
    return rates
