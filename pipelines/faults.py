"""What of an error a user can fix, dug out of what libraries wrapped around it."""

from __future__ import annotations

import contextlib
import errno
import os

from vidalign.errors import ClusterError, VidalignError

# Of a file or folder that cannot be written or read, wherever that shows: what to do about it.
FILE_FAULTS = {
    errno.ENOSPC: "free some space there and run the same command again: it continues",
    errno.EDQUOT: "ask for more, or free some space there, and run the same command again: it continues",
    errno.EROFS: "mount it for writing, or choose another folder, and run the same command again",
    errno.EACCES: "give this user the right to, or choose another place",
    errno.EPERM: "give this user the right to, or choose another place",
    errno.EISDIR: "remove the folder that has this name, or choose another place",
    errno.ENOTDIR: "remove the file that stands where a folder should be, or choose another place",
    errno.EEXIST: "remove what has this name, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "correct the links, which lead in a circle",
}


def fixable_cause(error: BaseException) -> VidalignError | None:
    """The `VidalignError` that a Ray actor raised, dug out of what Ray wrapped around it; or one for a file that cannot be used, or
    for training ranks that Ray Train gave up on.
    """
    seen: set[int] = set()
    given_up: VidalignError | None = None  # only where no rank says why itself
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        if isinstance(current, VidalignError):
            return current
        if isinstance(current, OSError) and current.errno in FILE_FAULTS:
            place = current.filename2 or current.filename or "a disk"  # of a copy, the second is its target
            what = "written" if current.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else "used"
            return ClusterError(f"{place} cannot be {what}: {current.strerror}; {_way_out(current.errno, place)}")
        seen.add(id(current))
        given_up = given_up or of_ranks(current)
        queue += [getattr(current, "cause", None), getattr(current, "controller_failure", None)]
        queue += [current.__cause__, current.__context__]
        workers = getattr(current, "worker_failures", None)  # Ray Train: {rank: error}
        if isinstance(workers, dict):
            queue += [failure for failure in workers.values() if isinstance(failure, BaseException)]
    return given_up


def _way_out(number: int, place: str) -> str:
    if number == errno.ENOSPC:
        with contextlib.suppress(OSError):  # of another node
            disk = os.statvfs(os.path.dirname(place) or ".")
            if disk.f_files and not disk.f_ffree and disk.f_bavail:
                return "it has space, but no inodes for more files; remove some there and run the same command again: it continues"
    return FILE_FAULTS[number]


def of_ranks(error: BaseException) -> VidalignError | None:
    """For the errors of Ray Train that say that ranks died, or did not start, more often than allowed."""
    again = "look at the memory of their nodes, and run the same command again: it continues from its newest checkpoint"
    if failure := getattr(error, "health_check_failure", None):
        from ray.exceptions import RayActorError

        if isinstance(failure, RayActorError):
            reason = " ".join(str(failure).split())[:200]
            return ClusterError(f"training ranks died more often than train.max_failures allows ({reason}); {again}")
    if type(error).__name__ in ("WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError"):
        reason = " ".join(str(error).split())[:200]
        return ClusterError(f"training ranks could not be started, however often it was tried ({reason}); {again}")
    return None
