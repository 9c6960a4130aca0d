"""What this machine has to offer, and what stands in the way."""

import errno
import socket
from pathlib import Path

import psutil

from pilotage.errors import Invalid

# Left to the rest of the machine when replicas are planned.
SPARE_MEMORY_FRACTION = 0.1


class PortTaken(Invalid):
    """Somebody else listens there."""

    condition_reason = "PortTaken"


def available_memory_bytes() -> int:
    """Memory that replicas may take now, the machine's own share left out; a container's limit counts too."""
    free_bytes = psutil.virtual_memory().available
    limit = _cgroup_free_bytes()
    usable = min(free_bytes, limit) if limit is not None else free_bytes
    return int(usable * (1 - SPARE_MEMORY_FRACTION))


def require_free_port(address: str, port: int, *, field: str) -> None:
    """Raises PortTaken, naming who has it where that can be seen."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"{address}:{port} is taken{_owner(port)}",
                    hint=f"stop that process, or set another port in an LLMGateway document ({field})",
                ) from error
            raise PortTaken(
                f"{address}:{port} can't be listened on: {error.strerror}",
                hint=f"use an address of this machine and a port above 1023 in an LLMGateway document ({field})",
            ) from error


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})" if connection.pid else ""
    except psutil.Error:
        pass
    return ""


def _cgroup_free_bytes() -> int | None:
    """What a container's memory limit leaves (cgroup v2, then v1)."""
    for folder, limit_file, used_file, cache_field in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (Path(folder) / limit_file).read_text().strip()
            if text == "max" or int(text) > 1 << 60:
                return None
            used_bytes = int((Path(folder) / used_file).read_text())
            stat = dict(line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines())
            # Pages of files that nobody uses now give way; kubelet counts so too.
            return max(0, int(text) - used_bytes + int(stat.get(cache_field, 0)))
        except (OSError, ValueError):
            continue
    return None
