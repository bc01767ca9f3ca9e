"""Errors that the user sees: one paragraph (what is wrong, where, what to do) and an exit code."""


class RecipeError(Exception):
    """An error that the user can act on. `code` is the process's exit code."""

    code = 1


class RunFailed(RecipeError):
    """A stage failed although its input was valid (exit code 1)."""

    code = 1


class Stopped(RecipeError):
    """Training stopped because it was asked to by SIGTERM (exit code 0)."""

    code = 0


class InputWrong(RecipeError):
    """The workbook, the recipe file or the command line is wrong (exit code 2)."""

    code = 2


class PlanRefused(InputWrong):
    """The run would not learn. `plan` holds the plan's figures."""

    def __init__(self, message, plan):
        super().__init__(message)
        self.plan = plan


class HostLacks(RecipeError):
    """The machine lacks something: a GPU, disk, rights, a file of the base model (exit code 3)."""

    code = 3


class NotFetched(HostLacks):
    """Something that has to be fetched is not here, and this container has no network: runtime/run starts another that
    has (exit codes 75 to 78, between these two alone).
    """

    CODES = {"model": 75, "tokenizer": 76, "package of train.loggers": 77, "workbook": 78}

    def __init__(self, what: str, called: str = "") -> None:
        super().__init__(f"The {called or what} is not here yet: fetching it in a container with a network.")
        self.code = self.CODES[what]
