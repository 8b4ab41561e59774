"""A clock that jumps: with this folder on PYTHONPATH, `time.time` is CLOCK_JUMP seconds off from
the moment when the file CLOCK_FILE is there. The machine's own clock is everybody's.
"""

import os
import time

if "CLOCK_FILE" in os.environ:
    real, file, jump = time.time, os.environ["CLOCK_FILE"], float(os.environ["CLOCK_JUMP"])
    time.time = lambda: real() + (jump if os.path.exists(file) else 0)
