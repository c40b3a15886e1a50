"""Where the admin listener is: a unix socket of this user's by default, or an address of one's own."""

import ipaddress
import logging
import os
import socket
import stat
import tempfile
from pathlib import Path

from gateway.settings import Settings, SettingsError

log = logging.getLogger(__name__)

AUTO = "auto"
_BACKLOG = 64


def default(port: int) -> Path:
    """The socket of the gateway on this port, in a folder that nobody else can write to."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base, f"baton-{os.getuid()}", f"{port}.sock")


def url(admin: str, port: int) -> str:
    """Where clients find it: `unix:///path` or `http://host:port`; empty if it is off."""
    if admin == AUTO:
        return f"unix://{default(port)}" if port else ""
    return admin if not admin or admin.startswith("unix://") else f"http://{admin}"


def check(settings: Settings) -> None:
    """Raises `SettingsError` for an address that cannot be used, or that is open to others without a key."""
    admin = settings.admin
    if admin in ("", AUTO) or admin.startswith("unix:///"):
        return
    host, colon, port = admin.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535 or "/" in admin:
        raise SettingsError(f"admin: {admin!r}: give host:port, unix:///path/to.sock, auto, or nothing to turn it off")
    if not _loopback(host) and not settings.admin_keys_file:
        raise SettingsError(f"admin: {admin} can be reached from other machines: set admin_keys_file, or use 127.0.0.1")


def bind(settings: Settings) -> socket.socket | None:
    """The listening socket; None if it is off. Raises OSError, `SettingsError`."""
    check(settings)
    where = url(settings.admin, settings.port)
    if not where:
        return None
    if settings.admin == AUTO:
        try:
            return _unix(Path(where.removeprefix("unix://")), private=True)
        except OSError as error:
            log.warning("no admin listener: %s: %s (setting admin)", where, error)
            return None
    if where.startswith("unix://"):
        return _unix(Path(where.removeprefix("unix://")), private=False)
    host, _, port = settings.admin.rpartition(":")
    return socket.create_server((host.strip("[]"), int(port)), family=_family(host), backlog=_BACKLOG)


def _unix(path: Path, private: bool) -> socket.socket:
    if private:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        found = path.parent.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(f"{path.parent} is not ours alone: remove it")
    path.unlink(missing_ok=True)  # of a gateway that has ended: two cannot have one port
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(before)
    listening.listen(_BACKLOG)
    return listening


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
