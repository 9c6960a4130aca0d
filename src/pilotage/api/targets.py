"""What a resource asks for that one place can't give."""

from collections.abc import Iterator, Sequence
from enum import StrEnum

from pilotage.api.llmgateway import LLMGateway
from pilotage.api.llmservice import LLMService
from pilotage.api.loading import Document, FileProblem


class Target(StrEnum):
    """Where a file is to run."""

    LOCAL = "local"
    CLUSTER = "cluster"


def problems_on(target: Target, documents: Sequence[Document]) -> list[FileProblem]:
    """Mistakes that hold only on `target`, in the order of the documents."""
    check = _local if target is Target.LOCAL else _cluster
    return list(check(documents))


def _local(documents: Sequence[Document]) -> Iterator[FileProblem]:
    gateway = next((d.resource for d in documents if isinstance(d.resource, LLMGateway)), LLMGateway())
    listener = gateway.spec.listener
    for document in documents:
        service = document.resource
        if isinstance(service, LLMService) and service.spec.access is None and not listener.is_loopback:
            yield FileProblem(
                document.file,
                document.line_of(("spec",)),
                "spec.access",
                f"the gateway listens on {listener.address}, beyond this machine, and this service asks for no key",
                "add spec.access.keysFrom, or listen on 127.0.0.1",
            )


def _cluster(documents: Sequence[Document]) -> Iterator[FileProblem]:
    for document in documents:
        service = document.resource
        if isinstance(service, LLMService) and service.spec.model.source.startswith("file://"):
            yield FileProblem(
                document.file,
                document.line_of(("spec", "model", "source")),
                "spec.model.source",
                "a file of this machine can't be reached from a cluster's nodes",
                "use hf:// or pypi://",
            )
