"""Whether settings let in more than an operator means to: checked before a socket is made."""

from __future__ import annotations

import re

from ....export.errors import RequestError
from ..settings import Settings
from .hosts import is_loopback

# A name or an address, and a port or none: no scheme, no user, no path, and no wildcard.
_NAME = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
_HOST = re.compile(_NAME)
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_NAME}")
_KEY = re.compile(r"[!-~]+")


def check_exposure(settings: Settings) -> None:
    """Raises RequestError for an address beyond this machine without a key, and for wildcards."""
    if settings.api_key is not None and not _KEY.fullmatch(settings.api_key):
        raise RequestError(
            "api_key: found none, or one with other characters than visible ASCII, expected a key "
            "that fits in a header; make one with: python -c 'import secrets; "
            "print(secrets.token_urlsafe())'"
        )
    if not is_loopback(settings.host) and settings.api_key is None:
        raise RequestError(
            f"host is {settings.host!r:.100}, found no key, expected one wherever other machines "
            "can connect; give --api-key-file, or leave --host out"
        )
    for name in settings.hosts:
        if not _HOST.fullmatch(name.lower()):
            raise RequestError(
                f"hosts: found {name!r:.100}, expected a name or an address, with a port or "
                "without, such as lab.example:8080; write each out"
            )
    for origin in settings.origins:
        if not _ORIGIN.fullmatch(origin.lower()):
            raise RequestError(
                f"origins: found {origin!r:.100}, expected the origin of a page as its browser "
                "sends it, such as https://lab.example; write each out"
            )
