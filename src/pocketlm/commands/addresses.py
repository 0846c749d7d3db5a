"""Where a server is to listen, and what to say where it cannot."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pocketlm.export.errors import PocketLMError, RequestError
from pocketlm.export.strict_json import quoted

PORTS_TRIED = 20


class AddressError(PocketLMError):
    """Another program listens there already."""

    exit_code = 5


@contextmanager
def binding(host: str, port: int) -> Iterator[None]:
    """Tells what keeps a socket from there: AddressError for another's, else RequestError."""
    try:
        yield
    except socket.gaierror as error:
        raise RequestError(
            f"host is {quoted(host, 100)}, found no address for it ({error.strerror}), expected "
            "one of this machine, such as 127.0.0.1"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressError(_in_use(host, port)) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise RequestError(
                f"port is {port}, which this user may not have, expected one of 1024 or more; "
                "choose another"
            ) from error
        raise RequestError(
            f"host is {quoted(host, 100)}, which cannot be listened at ({error.strerror}), "
            "expected an address of this machine, such as 127.0.0.1"
        ) from error
    except UnicodeError as error:
        raise RequestError(
            f"host is {quoted(host, 100)}, expected a name or an address, such as 127.0.0.1"
        ) from error


def _in_use(host: str, port: int) -> str:
    holder = _holder(port)
    found = f"port is {port}, found it in use{f' by {holder}' if holder else ''}"
    other = next((p for p in range(port + 1, port + PORTS_TRIED) if _is_free(host, p)), 0)
    return f"{found}, expected a free one; end that program, or take another port: --port {other}"


def _holder(port: int) -> str | None:
    """Name and number of the process that listens there; None where the system does not tell."""
    with contextlib.suppress(ImportError):
        import psutil

        with contextlib.suppress(psutil.Error, OSError):
            for found in psutil.net_connections("tcp"):
                if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                    return f"{psutil.Process(found.pid).name()} (process {found.pid})"
    return None


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        try:
            tried.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True
