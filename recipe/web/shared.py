"""Shared by all sessions of the page; serve.start sets it before the first session."""

from typing import Callable

from recipe.core.run import Run
from recipe.web.inference_queue import InferenceQueue

queue: InferenceQueue
find_run: Callable[[], Run]  # reads the run again; raises InputWrong if there is none
