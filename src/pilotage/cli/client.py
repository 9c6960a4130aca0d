"""The daemon, as commands see it: over its control socket, started when a command needs it."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from pilotage.api import SECRET_PREFIX
from pilotage.errors import Invalid, PilotageError, Unavailable
from pilotage.fleet.local.directories import Directories
from pilotage.fleet.local.processes import spawn

START_DEADLINE_S = 20.0
DEADLINE_S = 30.0
POLL_S = 0.05
RESTART_EVERY_S = 5.0


class DaemonError(PilotageError):
    """The daemon refused, in its own words."""

    condition_reason = "Refused"


class DaemonEnding(DaemonError):
    """Its last service went down a moment ago, and it with it."""

    condition_reason = "Ending"


REFUSALS: dict[str, type[PilotageError]] = {DaemonEnding.condition_reason: DaemonEnding}


class NotRunning(Unavailable):
    """No daemon runs, so nothing is served."""

    condition_reason = "NotRunning"

    def __init__(self) -> None:
        super().__init__("nothing is served here", hint="start something with `pilotage up FILE`")


class Daemon:
    """A client of this user's daemon."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories

    @classmethod
    def of_this_user(cls) -> "Daemon":
        """The daemon of whoever runs this command."""
        return cls(Directories.of_this_user())

    def is_running(self) -> bool:
        """It answers, or is being restarted by its guardian."""
        return self._answers() or self._directories.wanted_file.exists()

    def start(self) -> None:
        """Make sure that it runs. Raises Unavailable when it does not come up."""
        self._directories.create()
        self._until_answering()

    def until_ended(self) -> None:
        """Wait until no daemon runs, at most for some seconds."""
        deadline_s = time.monotonic() + START_DEADLINE_S
        while self._is_locked() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)

    def version(self) -> dict[str, Any]:
        """The daemon's version and pid."""
        return dict(self._get("/v1/version"))

    def apply(self, services: Sequence[dict[str, Any]], gateway: dict[str, Any] | None) -> dict[str, Any]:
        """Make these wanted."""
        # Secrets that this command's environment holds; the daemon was started in another one.
        told = {name: value for name, value in os.environ.items() if name.startswith(SECRET_PREFIX)}
        body = {"services": list(services), "gateway": gateway, "secrets": told}
        try:
            return dict(self._call("POST", "/v1/apply", body))
        except (DaemonEnding, NotRunning):
            self.until_ended()
            self.start()
            return dict(self._call("POST", "/v1/apply", body))

    def down(self, keys: Sequence[str] | None, *, now: bool) -> list[str]:
        """Take these down, or all. Returns their keys."""
        return list(self._call("POST", "/v1/down", {"services": keys, "now": now})["services"])

    def services(self) -> list[dict[str, Any]]:
        """All services with their status."""
        return list(self._get("/v1/services")["items"])

    def service(self, name: str) -> dict[str, Any]:
        """The service called `name` or `namespace/name`. Raises Invalid, naming the nearest, when there is none."""
        return named(self.services(), name)

    def decisions(self, key: str, *, last: int) -> list[dict[str, Any]]:
        """The last events of a service, oldest first."""
        return list(self._get(f"/v1/services/{key}/events?last={last}")["items"])

    def events(self, after: int) -> Iterator[dict[str, Any]]:
        """Events as they come; ends when the daemon does."""
        with self._client(timeout=None) as client, client.stream("GET", f"/v1/events?after={after}") as response:
            for line in response.iter_lines():
                if line:
                    yield json.loads(line)

    def _get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def _call(self, method: str, path: str, body: Any) -> Any:
        try:
            with self._client(timeout=DEADLINE_S) as client:
                response = client.request(method, path, json=body)
        except httpx.ConnectError as error:
            if not self._directories.wanted_file.exists():
                raise NotRunning from error
            # Its guardian brings it back; after a reboot nobody does.
            self._until_answering(while_wanted=True)
            return self._call(method, path, body)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the daemon did not answer: {type(error).__name__}",
                hint=f"see {self._directories.logs / 'daemon.log'}, and try again",
            ) from error
        if response.is_error:
            said = response.json()["error"]
            kind = REFUSALS.get(said["reason"], Invalid if response.status_code == 400 else DaemonError)
            raise kind(said["message"], hint=said.get("hint", ""))
        return response.json()

    def _answers(self) -> bool:
        try:
            with self._client(timeout=2) as client:
                return client.get("/v1/version").is_success
        except httpx.HTTPError:
            return False

    def _until_answering(self, *, while_wanted: bool = False) -> None:
        began_s = time.monotonic()
        tried_s = float("-inf")
        while time.monotonic() - began_s < START_DEADLINE_S:
            if self._answers():
                return
            if while_wanted and not self._directories.wanted_file.exists():
                raise NotRunning
            # A daemon that is ending still has the lock; the next one is started once it is gone.
            if not self._is_locked() and time.monotonic() - tried_s > RESTART_EVERY_S:
                tried_s = time.monotonic()
                spawn(daemon_command(), log=self._directories.logs / "daemon.log")
            time.sleep(POLL_S)
        log = self._directories.logs / "daemon.log"
        raise Unavailable(f"the daemon did not come up within {START_DEADLINE_S:.0f} s", hint=f"see {log}")

    def _is_locked(self) -> bool:
        if not self._directories.daemon_lock.exists():
            return False
        with self._directories.daemon_lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def _client(self, *, timeout: float | None) -> Iterator[httpx.Client]:
        transport = httpx.HTTPTransport(uds=str(self._directories.control_socket))
        with httpx.Client(transport=transport, base_url="http://daemon", timeout=timeout) as client:
            yield client


def daemon_command() -> list[str]:
    """How the daemon is started."""
    return [sys.executable, "-m", "pilotage.cli.daemon_process"]


def key_of(service: dict[str, Any]) -> str:
    """`namespace/name` of a service as the daemon shows it."""
    return f"{service['metadata'].get('namespace', 'default')}/{service['metadata']['name']}"


def named(services: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The service called `name` or `namespace/name`. Raises Invalid, naming the nearest, when there is none."""
    import difflib

    by_key = {key_of(service): service for service in services}
    found = by_key.get(name) or by_key.get(f"default/{name}")
    if found is None:
        same = [service for service in services if service["metadata"]["name"] == name]
        if len(same) == 1:
            return same[0]
        names = [service["metadata"]["name"] for service in services]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(by_key)) or 'none'}"
        raise Invalid(f"no service is called {name!r}", hint=hint)
    return found
