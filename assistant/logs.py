"""The server's log on stderr: for each event one line, as text or as JSON (setting `log_format`).

An event has fields beside its sentence: `event`, `version`, `message_id` and so on. What people write, what they are
answered and who they are is never logged. Left out: log files and their rotation, which systemd or Docker do.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]
FIELDS = {"asctime": "time", "levelname": "level", "name": "logger"}


def configure(form: Format) -> None:
    """Log to stderr in this form, from INFO on; libraries that log each request, only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        formatter = JsonFormatter(f"%({')s %('.join(FIELDS)})s %(message)s", rename_fields=FIELDS)
        formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03d"
        handler.setFormatter(formatter)
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)


def event(log: logging.Logger, name: str, sentence: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields; `sentence` says the same to a person, and is complete."""
    log.log(level, sentence, extra={"event": name, **fields})
