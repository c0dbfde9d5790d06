"""What a run tells: text that nobody has seen yet grows, text that somebody has seen stays as it was."""

from __future__ import annotations

from host.runs.events import EventLog


def texts(log: EventLog) -> list[str]:
    return [event.data["text"] for event in log.after(0) or ()]


def test_text_that_nobody_has_seen_is_one_chunk() -> None:
    log = EventLog()
    for word in ("one ", "two ", "three"):
        log.emit_text(word)
    assert texts(log) == ["one two three"]
    assert log.last_seq == 1


def test_text_that_was_seen_or_is_being_stored_is_not_changed() -> None:
    log = EventLog()
    log.emit_text("seen")
    assert texts(log) == ["seen"]
    log.emit_text("later ")
    log.emit_text("still")
    assert [event.data["text"] for event in log.unsaved()] == ["seen", "later still"]
    log.emit_text("new")
    assert texts(log) == ["seen", "later still", "new"]


def test_a_new_log_shows_what_it_is_told_and_a_held_one_when_it_is_released() -> None:
    log = EventLog()
    log.emit("start", {})
    assert [event.name for event in log.after(0) or ()] == ["start"]
    log.held = True
    log.emit("chunk", {"text": "kept back"})
    assert log.after(1) == []
    log.release()
    assert [event.seq for event in log.after(1) or ()] == [2]
