"""HTTP requests, and what is behind a failed one: its cause in one sentence, and whether to try again."""

import errno
import re
import ssl
from typing import Any, Dict, Iterator, Optional, Tuple, Union
from urllib.parse import urlsplit

from recipe.core.errors import HostLacks
from recipe.core.translation import _

LIMIT = 30  # seconds without a byte
Timeout = Union[float, Tuple[float, float]]  # (for the connection, without a byte)


def get(url: str, headers: Dict[str, str], timeout: Timeout = LIMIT, **more: str) -> Any:
    """requests' response, its body not yet read. Uncompressed, so that lengths and offsets count the file's bytes."""
    import requests

    return requests.get(url, headers={**headers, "Accept-Encoding": "identity", **more}, stream=True, timeout=timeout)


def check_response(response: Any, name: str, size: Optional[int] = None) -> None:
    """Raise requests' HTTPError if a response with status 200 is not the file: a page, a JSON error, another size."""
    import requests

    kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    page = kind == "text/html" and not name.endswith(".html")
    error = kind == "application/json" and not name.endswith((".json", ".jsonl"))
    if page or error or (size is not None and file_size(response) not in (None, size)):
        response.status_code = 404
        found = kind or _("something else")
        raise requests.HTTPError(
            _("{server} sent {found} instead of {name}", server=server(response.url), found=found, name=name),
            response=response,
        )


def server(url: str) -> str:
    """The host and port of an address, for messages: without a user's name and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def file_size(response: Any) -> Optional[int]:
    """Bytes of the whole file, from a response's headers; None if they do not state it."""
    if response.status_code == 206:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        size = response.headers.get("Content-Length", "")
    return int(size) if size.isdigit() else None


def causes(error: Any) -> Iterator[Any]:
    """The error and what it was raised from, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status(error: Exception) -> Optional[int]:
    """The HTTP status behind an error, or None."""
    responses = [getattr(cause, "response", None) for cause in causes(error)]
    return next((response.status_code for response in responses if response is not None), None)


def has_cause(error: Exception, *names: str) -> bool:
    """Whether an error or one of its causes is of a class with one of these names."""
    return any(type(cause).__name__ in names for cause in causes(error))


def is_temporary(error: Exception) -> bool:
    """Whether trying again soon may help."""
    import requests

    if isinstance(error, requests.exceptions.ProxyError) or _is_certificate_error(error):
        return False
    code = status(error)
    return code is None or code in (408, 429) or code >= 500


def is_unresolved(error: Exception) -> bool:
    """Whether the server's name has no address here."""
    return has_cause(error, "NameResolutionError", "gaierror")


def _is_certificate_error(error: Exception) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error))


def reason(error: Exception) -> str:
    """The cause of an error in one line, without passwords in addresses."""
    *_outer, first = causes(error)  # the innermost message is the shortest
    line = f"{type(first).__name__}: {first}".splitlines()[0]
    return re.sub(r"//[^/\s]+@", "//", line)[:200]


def explain_disk(error: Exception, what: str) -> Optional[HostLacks]:
    """The error for a disk that is full or cannot be written while `what` is fetched; None for another failure."""
    numbers = [getattr(cause, "errno", None) for cause in causes(error)]
    if errno.ENOSPC in numbers or errno.EDQUOT in numbers:
        return HostLacks(
            _(
                "{problem}. Free some space. Type the same command again: what has arrived is kept.",
                problem=_("The disk is full while {what} is being fetched", what=what),
            )
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return HostLacks(
            _(
                "{problem}. Make it writable. Type the same command again: what has arrived is kept.",
                problem=f"{error.filename}: {error.strerror}",
            )
        )
    return None


def explain_connection(error: Exception, server: str) -> Optional[HostLacks]:
    """The error for a certificate that is not accepted or a proxy that refuses; None for another failure."""
    import requests

    if _is_certificate_error(error):
        return HostLacks(
            _(
                "{problem}. Check the clock; behind a proxy that decrypts TLS, name its certificate: "
                "REQUESTS_CA_BUNDLE=/path/to/ca.pem.",
                problem=_("{server}'s certificate is not accepted: {reason}", server=server, reason=reason(error)),
            )
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return HostLacks(
            _(
                "{problem}. Correct or unset it.",
                problem=_(
                    "The proxy (HTTPS_PROXY) blocks access to {server}: {reason}", server=server, reason=reason(error)
                ),
            )
        )
    return None
