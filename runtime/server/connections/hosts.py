"""What a host is, a name or an address: who can reach it, and how a socket and a URL have it."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``; of names that is said of localhost alone.

    What another name means may be different tomorrow.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_unspecified(host: str) -> bool:
    """Whether it stands for all addresses; a browser takes it for loopback, from any page."""
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def in_url(host: str) -> str:
    """As a URL has it."""
    return f"[{host}]" if ":" in host else host.lower()


def family_of(host: str) -> socket.AddressFamily:
    """That of a socket there."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
