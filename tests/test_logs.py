"""What the platform's processes write of themselves."""

import json
import subprocess
import sys

SCRIPT = """
import structlog
from pilotage.logs import log_as_json

log_as_json("test")

def fetch(token):
    raise RuntimeError("refused")

try:
    fetch("a-secret-token")
except RuntimeError:
    structlog.get_logger().exception("fetch_failed")
"""


def test_a_logged_exception_says_where_and_shows_no_value_of_a_variable():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    said = json.loads(done.stderr)
    assert said["exception"][0]["exc_value"] == "refused"
    assert said["process"] == "test"
    assert "a-secret-token" not in done.stderr
