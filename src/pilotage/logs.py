"""How the platform's own processes log: one JSON object a line on stderr."""

import logging
import os
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer


def log_as_json(process: str) -> None:
    """Log as JSON from now on, with `process` in each line. PILOTAGE_LOG_LEVEL sets the level; info is the default."""
    level = logging.getLevelNamesMapping().get(os.environ.get("PILOTAGE_LOG_LEVEL", "info").upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without the frames' locals, which hold keys, tokens and prompts.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
