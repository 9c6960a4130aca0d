"""What all resources share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "pilotage.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

SECRET_PREFIX = "PILOTAGE_SECRET_"  # noqa: S105

# RFC 1123 label: what Kubernetes allows as a Service's name.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Part(BaseModel):
    """A part of a resource: camelCase outside, unknown fields refused, no silent conversions."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
    )


class ObjectMeta(Part):
    """What identifies the object."""

    name: Name
    """Unique among the objects of this kind in its namespace."""
    namespace: Name = "default"
    """Default: default."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Free labels, as on any Kubernetes object."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Free annotations, as on any Kubernetes object."""


class SecretKeyRef(Part):
    """One key of a Secret of the same namespace.

    On one machine it is the environment variable PILOTAGE_SECRET_<NAME>_<KEY> (upper case, other characters as _), or
    the file <name>/<key> in the folder `secrets` of Pilotage's configuration folder.
    """

    name: Name
    """The Secret."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """The key in it."""

    @property
    def environment_variable(self) -> str:
        """The variable that stands for this key on one machine."""
        return SECRET_PREFIX + "".join(c if c.isalnum() else "_" for c in f"{self.name}_{self.key}").upper()
