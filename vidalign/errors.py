"""Everything a user can fix is a `VidalignError`; its message names the rule, the value received and the way out.

    VidalignError(ValueError)
    ├── ConfigError        an unknown key, a value out of range, options that contradict each other
    ├── DataError          a missing file, a malformed row, a duplicate id, an empty data set
    │   └── RowError       one field of one row; carries where, field, why and fix
    ├── VideoError         one video that cannot be used; carries a quarantine `reason`
    ├── ModelError         a model folder that cannot be loaded, trained or served; a prompt beyond its context
    └── ClusterError       a plan that does not fit the cluster; a cluster or an endpoint that does not answer

The command line prints the message as one sentence and exits with code 2.
"""

from __future__ import annotations


class VidalignError(ValueError):
    """Base of every error whose cause lies in the user's input or environment."""


class ConfigError(VidalignError):
    """The configuration breaks a rule."""


class DataError(VidalignError):
    """A data file or row breaks a rule."""


class RowError(DataError):
    """One field of one row breaks a rule. `where` is the file and line, added by whoever knows them; `fix` is the way out."""

    def __init__(self, field: str, why: str, fix: str, where: str = "") -> None:
        super().__init__(field, why, fix, where)  # all arguments, so that it survives pickling between processes
        self.field, self.why, self.fix, self.where = field, why, fix, where

    def at(self, where: str) -> RowError:
        """The same error, with its place."""
        return type(self)(self.field, self.why, self.fix, where)

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.why}; {self.fix}".removeprefix(": ")


QUARANTINE_REASONS = (
    "missing",  # no file at the uri
    "unreadable",  # the file exists but cannot be opened (permissions, a folder without fps)
    "zero_byte",
    "not_a_video",  # no decoder recognises the container
    "not_an_image",  # an image, or a frame in a file of its own, that no decoder recognises
    "no_video_stream",  # for example an audio file
    "truncated",  # the container opens, but frames that its index promises cannot be decoded
    "too_few_frames",  # fewer frames than FrameSpec.min_frames
    "too_long",  # longer, or of more pixels, than FrameSpec.max_duration_s and max_pixels_decoded allow, or than its frames carry
    "out_of_bounds",  # the row's clip begins or ends outside of the video
    "unfit",  # the model's processor takes no frames of this size or number
    "timeout",  # not decoded within the deadline; the decoding process was killed
    "crashed",  # the decoding process died
)


class VideoError(VidalignError):
    """One video cannot be decoded as asked. `reason` is one of `QUARANTINE_REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self):  # exceptions with two arguments do not survive pickling between processes otherwise
        return (type(self), (self.reason, self.message))


class ModelError(VidalignError):
    """A model folder cannot be loaded, trained or served."""


class ClusterError(VidalignError):
    """The cluster cannot run what was asked."""
