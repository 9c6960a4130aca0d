"""`python -m pilotage.gateway FOLDER [ALIVE-FILE]`: the picker of one gateway."""

import sys
from pathlib import Path

from pilotage.gateway.process import run
from pilotage.logs import log_as_json

if __name__ == "__main__":
    log_as_json("picker")
    run(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
