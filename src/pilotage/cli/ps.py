"""`pilotage ps`."""

import click

from pilotage.cli.client import Daemon, NotRunning
from pilotage.cli.output import output_option, print_data, print_table
from pilotage.units import in_gb


@click.command("ps")
@output_option
def command(output: str) -> None:
    """List what is served here: services and their replicas."""
    try:
        services = Daemon.of_this_user().services()
    except NotRunning:
        services = []
    if output != "text":
        print_data(services, output)
        return
    rows = []
    for service in services:
        status = service["status"]
        ready = next(c for c in status["conditions"] if c["type"] == "Ready")
        wanted = service["spec"].get("replicas", 1)
        rows.append(
            (service["metadata"]["name"], ready["reason"], f"{status['readyReplicas']}/{wanted}", "", "", status["url"])
        )
        for replica in status["replicaStatuses"]:
            memory = replica.get("memoryBytes")
            rows.append(
                (
                    f"  {replica['name']}",
                    replica["phase"],
                    "",
                    "" if replica.get("running") is None else str(replica["running"]),
                    in_gb(memory) if memory else "",
                    replica["endpoint"],
                )
            )
    print_table(("NAME", "STATUS", "READY", "RUNNING", "MEMORY", "ADDRESS"), rows)
