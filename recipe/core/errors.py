"""Errors that the user sees: one paragraph (what is wrong, where, what to do) and an exit code."""

from recipe.core.translation import _, mark, stored

# What the system says of a call that failed.
SYSTEM_MESSAGES = (
    mark("[Errno {number}] {reason}: {file}"),
    mark("[Errno {number}] {reason}"),
    mark("Operation not permitted"),
    mark("No such file or directory"),
    mark("Input/output error"),
    mark("Cannot allocate memory"),
    mark("Permission denied"),
    mark("Device or resource busy"),
    mark("File exists"),
    mark("Not a directory"),
    mark("Is a directory"),
    mark("Invalid argument"),
    mark("Too many open files"),
    mark("Too many open files in system"),
    mark("Text file busy"),
    mark("File too large"),
    mark("No space left on device"),
    mark("Read-only file system"),
    mark("Broken pipe"),
    mark("File name too long"),
    mark("Directory not empty"),
    mark("Too many levels of symbolic links"),
    mark("Stale file handle"),
    mark("Disk quota exceeded"),
    mark("Exec format error"),
    mark("Address already in use"),
    mark("Cannot assign requested address"),
    mark("Network is unreachable"),
    mark("No route to host"),
    mark("Connection refused"),
    mark("Connection reset by peer"),
    mark("Connection timed out"),
    mark("Name or service not known"),
    mark("Temporary failure in name resolution"),
)


def reason(error: OSError) -> str:
    """What the system says of a failed call, without its number and file: No space left on device."""
    return stored(error.strerror or str(error))


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

    CODES = {mark("model"): 75, mark("tokenizer"): 76, mark("package of train.loggers"): 77, mark("workbook"): 78}

    def __init__(self, what: str, called: str = "") -> None:
        super().__init__(
            _("The {what} is not here yet: fetching it in a container with a network.", what=_(called or what))
        )
        self.code = self.CODES[what]
