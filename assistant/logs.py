"""What the server writes to stderr: a line of text for each event, or one of JSON (setting `log_format`).

An event carries its fields beside the sentence: `event`, `version`, `message_id` and so on. What people write and
what they are answered is never among them, and neither is who they are. Left out: files and their rotation, which
whatever keeps the server's output has (systemd, Docker).
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]
FIELDS = {"asctime": "time", "levelname": "level", "name": "logger"}


def configure(form: Format) -> None:
    """Send everything from INFO on to stderr in this form; libraries that log each request, from WARNING on."""
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
    """Log an event with its fields; `sentence` says the same to a person and has no fields left to fill in."""
    log.log(level, sentence, extra={"event": name, **fields})
