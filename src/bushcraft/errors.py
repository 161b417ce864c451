"""What a user, a machine or a provider can do wrong, and the next step.

Every command prints such an error as one line and exits with its code. Anything else that is raised
is a bug of ours and keeps its traceback.
"""


class BushcraftError(Exception):
    """What was wrong and where (`message`), and what to do about it (`next_step`)."""

    exit_code = 2

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}. {self.next_step}" if self.next_step else self.message

    def __reduce__(self) -> tuple[type["BushcraftError"], tuple[str, str]]:
        """Cross process boundaries whole: a worker's error must read like our own."""
        return type(self), (self.message, self.next_step)


class RecipeError(BushcraftError):
    """A recipe or an override that cannot be trained."""


class DataError(BushcraftError):
    """An input file or data set that is missing, empty, unreadable or does not fit."""


class StoreError(BushcraftError):
    """A place that cannot be read or written: no permission, a full disk, an unknown name."""


class CorruptObjectError(StoreError):
    """Bytes that are not what their name or checksum says; they were not used."""


class MissingObjectError(StoreError):
    """An object that is not there."""


class UnreachableError(StoreError):
    """A provider or a peer that does not answer, or refuses for now: later it may."""


class CheckpointError(BushcraftError):
    """A checkpoint that is missing, incomplete or does not fit the model."""


class RunError(BushcraftError):
    """A run that is unknown, is busy in another process, or cannot go on as asked."""
