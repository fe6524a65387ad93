"""What `zaptasks serve` can be told: one frozen object, checked as a whole before anything is opened.

The names are those of the Go daemon's flags and environment, so that one can replace the other. What this
version cannot do is refused here, with what to do instead; nothing that was asked for is silently left out.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from zapserver.engine.errors import Invalid
from zapserver.engine.limits import Limits
from zapserver.limits import ServerLimits
from zapserver.namespaces import check_namespace_name
from zapwire.errors import LocalProtocolError
from zapwire.handshake import Hello, encode_hello

ZAP_PORT_DEFAULT = 9999
HTTP_PORT_DEFAULT = 7243
LOOPBACK = "127.0.0.1"

MEMORY = ":memory:"
"""Instead of a data directory: keep nothing."""

DATA_DEFAULT = "./tasks-data"

NODE_ID_DEFAULT = "zaptasks"

_HOST_PORT = re.compile(r"(?:(?P<host>\[[^\]]*\]|[^:\[\]]*):)?(?P<port>[0-9]{1,5})", re.ASCII)


class SettingsError(ValueError):
    """A setting that cannot be used; the message says which, with its value, and what would be right."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 means any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can connect. A name other than `localhost` might mean any address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Read PORT, :PORT, HOST:PORT or [IPv6]:PORT; without a host it is loopback.

    Go's daemon takes ":7243" for every interface. Here a port alone never opens a server to the network.
    """
    match = _HOST_PORT.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"{text!r} is not an address: write PORT, HOST:PORT or [IPv6]:PORT, such as 127.0.0.1:9999")
    port = int(match["port"])
    if port > 65_535:
        raise SettingsError(f"port {port} in {text!r}: ports are 0 (any free one) to 65535")
    return Address((match["host"] or "").strip("[]") or LOOPBACK, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a server is started with. The defaults are the Go daemon's, on loopback.

    Raises:
        SettingsError: a value that cannot be used.
    """

    zap: Address = Address(LOOPBACK, ZAP_PORT_DEFAULT)
    http: Address = Address(LOOPBACK, HTTP_PORT_DEFAULT)
    namespace: str = "default"
    """Registered at start, and meant by every call that names none."""
    data: str = MEMORY
    """The data directory, or `MEMORY`. The command `serve` has a default of its own, `DATA_DEFAULT`."""
    node_id: str = NODE_ID_DEFAULT
    """What the server calls itself in the handshake."""
    limits: Limits = Limits()
    """Of each namespace."""
    server_limits: ServerLimits = ServerLimits()
    allow_anonymous: bool = False
    """Serve the network without asking anyone who they are."""
    require_identity: bool = False
    jwks_url: str = ""

    def __post_init__(self) -> None:
        try:
            check_namespace_name(self.namespace)
        except Invalid as error:
            raise SettingsError(str(error)) from None
        try:
            encode_hello(Hello(self.node_id))
        except LocalProtocolError as error:
            raise SettingsError(str(error)) from None
        if not self.data:
            raise SettingsError(f"the data directory is empty: name a directory, or {MEMORY} to keep nothing")
        if self.require_identity or self.jwks_url:
            raise SettingsError(
                "identities are asked for (TASKSD_REQUIRE_IDENTITY or TASKSD_JWKS_URL), and this version cannot check"
                " any: unset them and listen on loopback, or behind something that checks who connects"
            )
        for what, address in (("ZAP", self.zap), ("HTTP", self.http)):
            if not (address.is_loopback or self.allow_anonymous):
                raise SettingsError(
                    f"{what} address {address}: other machines could use this server without saying who they are;"
                    f" listen on {LOOPBACK}, or add --allow-anonymous if that is what you want"
                )
