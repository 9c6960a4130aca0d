#!/bin/sh
# Make the virtual environment VENV with what LOCK names, and Pilotage itself as an editable installation.
# Usage: tools/setup.sh VENV LOCK
set -eu
venv=$1 lock=$2 python=${PYTHON:-python3}

"$python" - <<'EOF' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Pilotage needs Python 3.11 or later; {sys.executable} is {sys.version.split()[0]} (set PYTHON=...)")
EOF

if [ ! -x "$venv/bin/pip" ]; then
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    # Debian puts it into a package of its own.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv
    else
      echo "Python's venv module is not complete: install it (Debian: apt-get install python3-venv)" >&2
      exit 1
    fi
  fi
  "$python" -m venv "$venv"
fi

echo "installing $lock into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$lock"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
