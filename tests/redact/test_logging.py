from __future__ import annotations

import json
import subprocess
import sys
from textwrap import dedent
from typing import Any

CANARY = "sk-canary-0123456789"


def logged(body: str, log_format: str = "json", code: int = 0) -> str:
    """Run a program that configures logging and then does ``body``; return its standard error.

    Without buffers, as in the image: Python ends with 120 when what is left in one can't be written.
    """
    program = f"""
import logging
from shared.logging import configure, request_id
from shared.redact import Redactor

CANARY = "sk-canary-" + "0123456789"
configure("info", "{log_format}", Redactor([CANARY]))
log = logging.getLogger("picoclaw.test")
{dedent(body)}
"""
    done = subprocess.run(
        [sys.executable, "-u", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert CANARY not in done.stderr
    return done.stderr


def entries(body: str, code: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(body, code=code).splitlines()]


def test_a_record_is_one_json_line_with_its_fields() -> None:
    (entry,) = entries('request_id.set("req-1"); log.info("Tool %s failed", "x", extra={"tool": "exec"})')
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "info",
        "logger": "picoclaw.test",
        "message": "Tool x failed",
        "request_id": "req-1",
        "tool": "exec",
    }


def test_extra_fields_cannot_pose_as_the_record_s_own() -> None:
    (entry,) = entries('log.info("real", extra={"level": "x", "logger": "y", "time": "z"})')
    assert (entry["level"], entry["logger"], entry["message"]) == ("info", "picoclaw.test", "real")


def test_secrets_are_redacted_in_messages_fields_and_exceptions() -> None:
    program = """
    log.info("it is %s", CANARY, extra={"field": {"deep": [CANARY]}, "other": ValueError(CANARY)})
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        log.exception("failed")
    """
    first, second = entries(program)
    assert first["message"] == "it is [redacted]"
    assert first["field"] == {"deep": ["[redacted]"]}
    assert "RuntimeError: [redacted]" in second["exception"]


def test_a_secret_split_over_two_records_is_redacted() -> None:
    first, second = entries("log.info('a ' + CANARY[:10]); log.info(CANARY[10:] + ' b')")
    assert first["message"] == "a [redacted]"
    assert second["message"] == "[redacted] b"


def test_an_exception_that_nobody_caught_is_logged_redacted() -> None:
    (entry,) = entries("raise RuntimeError(CANARY)", code=1)
    assert entry["level"] == "critical"
    assert "RuntimeError: [redacted]" in entry["exception"]
    (entry,) = entries(
        """
        import threading
        def fail(): raise RuntimeError(CANARY)
        thread = threading.Thread(target=fail); thread.start(); thread.join()
        """
    )
    assert "RuntimeError: [redacted]" in entry["exception"]


def test_an_exception_that_could_not_be_raised_is_logged_redacted() -> None:
    (entry,) = entries(
        """
        class Closing:
            def __del__(self): raise RuntimeError(CANARY)
        closing = Closing(); del closing
        """
    )
    assert "RuntimeError: [redacted]" in entry["exception"]


def test_arguments_that_do_not_fit_their_message_leak_nowhere() -> None:
    (entry,) = entries("log.info('%d items', CANARY)")
    assert entry["message"] == "%d items"


def test_a_record_that_cannot_be_written_is_lost_in_silence() -> None:
    assert logged("import sys, os; sys.stderr.flush(); os.close(2); log.info(CANARY)") == ""


def test_what_json_cannot_hold_is_logged_as_text() -> None:
    (entry,) = entries("log.info('name \\udcff', extra={'big': 1 << 80, 'no': float('nan'), 'o': {1: b'x'}})")
    assert entry["message"] == "name \\udcff"
    assert entry["big"] == str(1 << 80)
    assert entry["o"] == {"1": "b'x'"}


def test_the_server_s_and_the_client_s_own_chatter_is_quiet() -> None:
    assert (
        entries("logging.getLogger('uvicorn.error').info('x'); logging.getLogger('httpx2').info('x')") == []
    )
    assert len(entries("logging.getLogger('uvicorn.error').error('x')")) == 1


def test_the_console_form_is_for_people_and_shows_control_characters() -> None:
    line = logged('log.warning("red \\x1b[31m", extra={"tool": "exec"})', "console")
    assert "WARNING red \\x1b[31m tool=exec" in line
