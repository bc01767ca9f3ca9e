"""What all sessions of the page share; serve.start sets it before the first of them begins."""

from typing import Callable

from recipe.core.run import Run
from recipe.web.inference_queue import InferenceQueue

queue: InferenceQueue
find_run: Callable[[], Run]  # the run as it is now; raises InputWrong while there is none
