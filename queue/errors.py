"""What can go wrong with a queue, one exception per thing a caller can act on.

The request path turns `QueueFull` and `QueueBroken` into a 503, the command line turns the
others into a sentence and an exit code. Messages name folders and numbers, never log text.
"""


class QueueError(Exception):
    """A queue could not do what was asked of it; the message says what to do."""


class QueueFull(QueueError):
    """No room for another call's entries; open calls still get theirs. Try again later."""


class QueueStalled(QueueFull):
    """The disk takes no commit at present. Whoever gets this waits no longer for his opening,
    which may be stored later all the same; it is closed behind then. Try again later."""


class QueueBroken(QueueError):
    """The queue's own file failed; the process must end, and the next start adopts the file.

    `is_damage`: the file's content is at fault (CORRUPT, NOTADB), not the disk below it.
    """

    def __init__(self, message: str, is_damage: bool = False) -> None:
        super().__init__(message)
        self.is_damage = is_damage


class QueueClosed(QueueError):
    """The queue was closed in an orderly way and takes nothing more."""


class QueueFolderUnusable(QueueError):
    """LOG_QUEUE_DIR cannot hold a queue: it is missing, read-only or on a full disk."""


class OwnerAlive(QueueError):
    """Another process holds the lock of this queue's folder and is still working on it."""


class NotAQueue(QueueError):
    """The file cannot be read as a queue: it is not a database, or a damaged one."""


class NeedsRepair(NotAQueue):
    """The file's order or its batches are damaged; it can be repaired once a copy is kept."""


class OtherSchema(QueueError):
    """The file was written by a release with another schema; it stays untouched where it is."""
