"""`python -m pilotage.agent CONFIG`: the agent of one replica, and its engine's parent."""

import asyncio
import sys
from pathlib import Path

from pilotage.agent.process import Agent
from pilotage.fleet import AgentConfig
from pilotage.logs import log_as_json

if __name__ == "__main__":
    log_as_json("agent")
    config = AgentConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
    sys.exit(asyncio.run(Agent(config).run()))
