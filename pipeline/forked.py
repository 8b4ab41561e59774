"""What local workers are forked from: all that they need for their start and their first task,
imported once for all of them. Its import says that nothing of it is garbage, now or at the end."""

import gc
import tempfile

import cv2
import distributed.http.worker.prometheus
import distributed.nanny
import distributed.worker
import numpy.random
import PIL.Image
import simplejpeg
import typer

import pipeline.carry
import pipeline.reading
from pipeline.memory import keep_freed_memory

# Python finds the folder for temporary files by writing one there, which a worker that is killed in
# that moment would leave.
tempfile.gettempdir()
# Else each worker would look at half a million objects every now and then, and so copy their pages.
gc.freeze()
# Before there are threads, each of which would have a pool of its own.
keep_freed_memory()
