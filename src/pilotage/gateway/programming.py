"""Writes what the gateway reads: Envoy's files and the picker's table, each replaced by rename."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from pilotage.files import write_atomically
from pilotage.gateway.envoy import Json, clusters, endpoints, endpoints_file, routes
from pilotage.gateway.table import RoutingTable, ServiceEntry


@dataclass(frozen=True, slots=True)
class GatewayFiles:
    """Where the files of one gateway lie."""

    folder: Path

    @property
    def xds(self) -> Path:
        return self.folder / "xds"

    @property
    def table(self) -> Path:
        return self.folder / "table.json"

    @property
    def bootstrap(self) -> Path:
        return self.folder / "envoy.json"

    @property
    def access_log(self) -> Path:
        return self.folder / "access.log"

    @property
    def ledger(self) -> Path:
        return self.folder / "limits.ledger"

    @property
    def admin_socket(self) -> Path:
        return self.folder / "envoy.sock"

    @property
    def picker_socket(self) -> Path:
        return self.folder / "picker.sock"

    @property
    def control_socket(self) -> Path:
        return self.folder / "picker-control.sock"


def program(table: RoutingTable, files: GatewayFiles) -> None:
    """Make `table` what the gateway goes by.

    Endpoints are written before the clusters that need them, and both before the picker may choose them; the picker
    waits for Envoy to have applied them all the same. What is gone is removed last.
    """
    files.xds.mkdir(parents=True, exist_ok=True)
    for service in table.services:
        _write(files.xds / endpoints_file(service), _response(table, [endpoints(service)]))
    _write(files.xds / "clusters.json", _response(table, list(clusters(table.services, xds=files.xds))))
    _write(files.xds / "routes.json", _response(table, [routes(table.services)]))
    write_atomically(files.table, table.to_json())
    _remove_stale(files.xds, table.services)


def _response(table: RoutingTable, resources: list[Json]) -> bytes:
    return orjson.dumps({"version_info": str(table.generation), "resources": resources})


def _write(path: Path, data: bytes) -> None:
    # An unchanged resource is not written: Envoy would do the work of a change.
    if not path.exists() or _without_version(path.read_bytes()) != _without_version(data):
        write_atomically(path, data)


def _without_version(data: bytes) -> object:
    return orjson.loads(data).get("resources")


def _remove_stale(folder: Path, services: tuple[ServiceEntry, ...]) -> None:
    wanted = {endpoints_file(service) for service in services}
    for path in folder.glob("endpoints-*.json"):
        if path.name not in wanted:
            path.unlink(missing_ok=True)
