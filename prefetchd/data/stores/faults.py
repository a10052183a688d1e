"""What the errors of a store mean, by their type: the content's fault, the environment's, or another object."""

from __future__ import annotations

import re

from prefetchd.data.faults import EnvironmentFault, SampleFault, UnreadableFile
from prefetchd.data.stores.options import credentials_hint
from prefetchd.data.stores.urls import is_web
from prefetchd.data.stores.urls import shown as shown_url
from prefetchd.errors import ManifestError, one_line

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_ODD_NAME = re.compile(r'object with invalid path: Path ("[^"]*")')  # in a listing
_MISSING = ("404", "410")
_FORBIDDEN = ("401", "403", "451")
_MAY_PASS = ("408", "425", "429")
# Answers that are about the one who asks, and not about the object: no object is bad for them.
_CREDENTIALS = {
    "ExpiredToken": "the session token has expired; renew the credentials",
    "InvalidToken": "the session token is not valid; renew the credentials",
    "TokenRefreshRequired": "the session token has expired; renew the credentials",
    "InvalidAccessKeyId": "the store does not know the access key; check the credentials",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check the credentials",
    "AuthenticationFailed": "the store does not take the credentials; check the account's key or token",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
}
_MOST_CHARACTERS = 300


class LastingFault(EnvironmentFault):
    """The store answers no request of this process, for any object; the reason ends with what to do."""


def refusal(what: str, shown: str, fault: Exception) -> ManifestError:
    """Return the error for an object that is needed at once: *cannot WHAT URL: why; what to do*."""
    remedy = "" if isinstance(fault, LastingFault) else "; check the URL and the credentials"
    return ManifestError(f"cannot {what} {shown}: {fault}{remedy}")


class Forbidden(UnreadableFile):
    """The store forbids to read an object (content); or all of them, which `forbidden` tells."""


class IgnoredRange(EnvironmentFault):
    """The server answers a range with the whole object."""


def fault_of_store(error: BaseException, shown: str) -> SampleFault | ManifestError | None:
    """Return what to raise for `error`, which was raised while the object `shown` was read; `None` for no store's."""
    import obstore.exceptions as known

    if type(error).__name__ == "PanicException":  # no module has this class
        said = one_line(str(error))[:_MOST_CHARACTERS]
        return LastingFault(f"obstore failed within ({said}); check the endpoint and the credentials")
    if not isinstance(error, known.BaseError | OSError | ValueError):
        return None
    text = str(error).split("\n\nDebug")[0]
    code, status = _CODE.search(text), _STATUS.search(text)
    answer = status[1] if status else ""
    if code and code[1] in _CREDENTIALS:
        return LastingFault(_CREDENTIALS[code[1]])
    if "Request has expired" in text:
        return LastingFault("the signed URL has expired; make the URLs anew")
    if (odd := _ODD_NAME.search(text)) is not None:
        return LastingFault(f"it has {odd[1]}, and no key with an empty part can be taken; rename it, or give a list")
    if code and code[1] in ("NoSuchBucket", "ContainerNotFound"):
        return LastingFault("there is no such bucket; check its name, and the endpoint and region")
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return LastingFault(f"there are no credentials; {credentials_hint(shown)}")
    if "redirect without LOCATION" in text:
        if is_web(shown):
            return EnvironmentFault("the server redirects, and does not say where to")
        return LastingFault('the bucket is in another region; set AWS_REGION, or give store_options="region=..."')
    if isinstance(error, known.PreconditionError):
        return changed(shown)
    if isinstance(error, FileNotFoundError) or answer in _MISSING:
        return UnreadableFile("there is no such object")
    if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError) or answer in _FORBIDDEN:
        return Forbidden("the store forbids to read it")
    if isinstance(error, known.NotSupportedError) or "non-partial response" in text:
        return IgnoredRange("the server ignores ranges, and sends whole objects; give one that answers ranges (206)")
    if answer == "416":  # ranges lie within the object that was indexed
        return changed(shown)
    if isinstance(error, ValueError) or (code and code[1] == "KeyTooLongError"):
        return UnreadableFile(
            "no object can have this name: a part of it is empty, . or .., or it is too long or has control characters"
        )
    said = one_line(text)[:_MOST_CHARACTERS]
    refuses = answer.startswith("4") and answer not in _MAY_PASS
    return LastingFault(said) if refuses else EnvironmentFault(said)


def lost(url: str, fault: UnreadableFile) -> ManifestError:
    """Return the error for an object of many samples that cannot be read any more."""
    return ManifestError(
        f"cannot go on with {shown_url(url)}: {fault} any more, while in use; start again to serve it as it is"
    )


def changed(shown: str) -> ManifestError:
    """Return the error for an object that is another one than was indexed."""
    return ManifestError(f"cannot go on with {shown}: it was replaced while in use; start again to serve it as it is")
