#!/bin/sh
# Resolve the dependencies of pyproject.toml for all platforms, with hashes and without any index's address.
set -eu
compile() {
  .venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-annotate --custom-compile-command "make lock" "$@"
}
compile pyproject.toml --group build --output-file requirements.lock "$@"
compile pyproject.toml --group dev --output-file requirements-dev.lock "$@"
