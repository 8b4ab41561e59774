"""Warnings of other packages that tell our users nothing."""

from __future__ import annotations

import re
import warnings


def pass_over_warnings(module: str) -> None:
    """Warnings of the modules whose names begin with the pattern are shown no more, in any thread.

    `warnings.catch_warnings` is for one thread: of several, one restores what another has set, and
    all warnings of the process stay off.
    """
    # To set what is there would make Python forget which warnings it has shown.
    if ("ignore", None, Warning, re.compile(module), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=module)
