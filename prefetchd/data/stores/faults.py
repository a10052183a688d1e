"""What the errors of a store mean, by their type: the content's fault, the environment's, or another object."""

from __future__ import annotations

from prefetchd.data.faults import EnvironmentFault, SampleFault, UnreadableFile
from prefetchd.errors import ManifestError, one_line


def fault_of_store(error: Exception, shown: str) -> SampleFault | ManifestError:
    """Return what to raise for `error`, which the store's library raised while the object `shown` was read."""
    import obstore.exceptions as known

    if isinstance(error, FileNotFoundError):
        return UnreadableFile("there is no such object")
    if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
        return UnreadableFile("the store forbids to read it")
    if isinstance(error, known.PreconditionError):
        return changed(shown)
    return EnvironmentFault(one_line(str(error).split("\n\nDebug")[0])[:300])


def changed(shown: str) -> ManifestError:
    """Return the error for an object that is another one than was indexed."""
    return ManifestError(f"cannot go on with {shown}: it was replaced while in use; start again to serve it as it is")
