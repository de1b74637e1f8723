"""Which hosts may be asked for an image: public ones, and those that the configuration names.

A gateway stands inside of a network, and an address that a client makes up must not reach what only those
inside may. So a name is looked up here, each of its addresses is judged, and the connection goes to the very
address that was: what a name server says a moment later makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpcore

from gateway.fetching.hosts import canonical
from gateway.fetching.linked import Unfetchable
from gateway.fetching.names import Names

TRIES = 2  # addresses of one host that are tried

# What `ipaddress` takes for public in some versions, and is not for hosts.
_SPECIAL = [ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "5f00::/16")]
_GLOBAL_V6 = ip_network("2000::/3")
_TUNNELS = [ip_network("2001::/32"), ip_network("2002::/16")]  # Teredo, 6to4: to an IPv4 address in them
_NAT64 = ip_network("64:ff9b::/96")  # the same, of networks that have IPv6 alone


class Reach(httpcore.AsyncNetworkBackend):
    """Connects to hosts that may be asked.

    Args:
        hosts: the only ones, where there are any; `*.example.com` are all below that.
        networks: that may be reached though they are not public.
    """

    def __init__(self, hosts: Iterable[str], networks: Iterable[str]) -> None:
        self._hosts = {canonical(each) for each in hosts if not each.startswith("*.")}
        self._above = tuple(f".{canonical(each[2:])}" for each in hosts if each.startswith("*."))
        self._networks = [ip_network(each) for each in networks]
        self._names = Names()
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to one of a host's addresses. Unfetchable where it has none that may be reached."""
        if not self._is_named(host):
            raise Unfetchable(f"{host} is none of the hosts that images are fetched from (images.hosts)")
        found = await self._addresses(host, port)
        allowed = [each for each in found if self.allows(each)]
        if not allowed:
            raise Unfetchable(f"{host} is at no public address (images.networks can allow others)")
        *others, last = allowed[:TRIES]
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._backend.connect_tcp(last, port, timeout, local_address, socket_options)

    def allows(self, address: str) -> bool:
        """Whether an IP address may be reached."""
        given = ip_address(address.partition("%")[0])
        found = _inner(given)
        if any(given in network or found in network for network in self._networks):
            return True
        if not found.is_global or found.is_multicast or found.is_reserved:
            return False
        if found.version == 6 and found not in _GLOBAL_V6:
            return False
        return not any(found in network for network in (*_SPECIAL, *_TUNNELS))

    def _is_named(self, host: str) -> bool:
        return not (self._hosts or self._above) or host in self._hosts or host.endswith(self._above)

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        with suppress(ValueError):
            return [str(ip_address(host))]
        return await self._names.addresses(host, port)


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that one of IPv6 stands for, where it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
