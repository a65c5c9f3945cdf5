"""Defines the errors that batchline raises, as one tree.

```
BatchlineError
├── InvalidInput    a file, parameter or setting given by the caller cannot be used
│   ├── InputChanged    the stored input is not the one that was validated
│   └── TooLarge        an input file exceeds its size limit
├── NotFound        no file, batch or request has this id
├── Conflict        the object's state does not allow the operation
│   ├── LeaseLost   another process has taken over the batch
│   └── LimitReached    a limit on concurrent work is reached; try again later
├── StorageFault    the object store or the database failed; try again
│   └── SourceFault     a place that files are picked up from failed
├── Interrupted     a run stopped before all requests were settled; the batch can be resumed
│   └── BatchPaused     the batch is paused until someone resumes it
└── BatchEnded      a batch ended, but not as `completed`
```

A request that fails raises no error: it becomes a line of the error file.
"""

import functools


class BatchlineError(Exception):
    """Base class of all errors that batchline raises on purpose; its message is written for users."""


class InvalidInput(BatchlineError):
    """Input from the caller cannot be used; `param` names the wrong parameter or setting."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InputChanged(InvalidInput):
    """The stored input file differs from the one that was validated, so its plan no longer holds."""


class TooLarge(InvalidInput):
    """An input file exceeds the size limit for all files or for the caller's files."""


class NotFound(BatchlineError):
    """No file, batch or request has the given id."""


class Conflict(BatchlineError):
    """The object's state does not allow the operation."""


class LeaseLost(Conflict):
    """Another process holds the batch's lease; this one must stop sending and writing."""


class LimitReached(Conflict):
    """A limit on concurrent work is reached; the caller can try again later."""


class StorageFault(BatchlineError):
    """The object store or the database failed; nothing is lost and the work can be retried."""


class SourceFault(StorageFault):
    """A place that files are picked up from failed; batchline's own storage and records did not."""


class Interrupted(BatchlineError):
    """A run stopped before all requests were settled; answers are saved and the batch can be resumed."""


class BatchPaused(Interrupted):
    """The batch `batch_id` is paused; `code` is the reason, and its answers so far are saved."""

    def __init__(self, message: str, *, batch_id: str, code: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keyword arguments, which the default implementation loses."""
        return functools.partial(BatchPaused, batch_id=self.batch_id, code=self.code), self.args


class BatchEnded(BatchlineError):
    """The batch `batch_id` ended with a `status` other than `completed`."""

    def __init__(self, message: str, *, batch_id: str, status: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keyword arguments, which the default implementation loses."""
        return functools.partial(BatchEnded, batch_id=self.batch_id, status=self.status), self.args
