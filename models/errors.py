"""The errors that batchline raises, as one tree.

```
BatchlineError
├── InvalidInput    what the caller gave cannot be used: a file, a parameter, a setting
│   ├── InputChanged    the stored input is not the one that was validated
│   └── TooLarge        an input file is longer than it may be
├── NotFound        no file, batch or request of that id
├── Conflict        the object's state forbids it
│   ├── LeaseLost   another runner has taken the batch over
│   └── LimitReached    so much of it is under way already; try again later
├── StorageFault    the object store or the database did not do its part; try again
│   └── SourceFault     a place that files are picked up from did not
├── Interrupted     a run stopped before all was settled; the batch can be resumed
└── BatchEnded      a batch ended, but not as `completed`
```

A request that fails is no error here: it is a line of the error file.
"""


class BatchlineError(Exception):
    """Base of every error that batchline raises on purpose; its text is fit for a person to read."""


class InvalidInput(BatchlineError):
    """What the caller gave cannot be used; `param` names the offending parameter or setting."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InputChanged(InvalidInput):
    """The stored input file differs from the one that was validated, so its plan no longer holds."""


class TooLarge(InvalidInput):
    """An input file is longer than a file may be, or than this caller's files may be."""


class NotFound(BatchlineError):
    """There is no file, batch or request of the id that was asked for."""


class Conflict(BatchlineError):
    """The object's present state forbids what was asked."""


class LeaseLost(Conflict):
    """Another runner holds the batch's lease; this one must not send or write any more."""


class LimitReached(Conflict):
    """As much is under way as may be at once; it can be asked for again later."""


class StorageFault(BatchlineError):
    """The object store or the database failed; nothing is lost and the work can be tried again."""


class SourceFault(StorageFault):
    """A place that files are picked up from failed; our own storage and records did not."""


class Interrupted(BatchlineError):
    """A run stopped before every request was settled; what was answered is saved and the batch can go on."""


class BatchEnded(BatchlineError):
    """A batch came to an end other than `completed`; `batch_id` and `status` say which and how."""

    def __init__(self, message: str, *, batch_id: str, status: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keyword arguments, which the default would lose."""
        return _batch_ended, (str(self), self.batch_id, self.status)


def _batch_ended(message: str, batch_id: str, status: str) -> BatchEnded:
    return BatchEnded(message, batch_id=batch_id, status=status)
