"""What the process tells about itself: one event, one line, the values as fields.

On a terminal the lines are for reading; elsewhere each is one JSON object.  Modules log by the
standard library's loggers below `taskq`, so that a host application's set-up works too; this module
only decides how the lines look.  Never logged: passwords, mail bodies, whole addresses.
"""

import logging
import sys
from typing import Literal

import structlog

__all__ = ["set_up_logging"]


def set_up_logging(form: Literal["auto", "human", "json"], level: str) -> None:
    """Send the log to standard error.

    Args:
        form: `human`, `json`, or `auto`: human on a terminal.
        level: Least severe level shown, such as `info`.
    """
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if human else "iso", utc=not human),
    ]
    last: list[structlog.types.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("taskq").setLevel(level.upper())
