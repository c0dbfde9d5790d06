"""Homes of other systems move in: what is taken, what is told, and what is there when it is done twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import picoclaw, process
from tests.moving_in import homes
from tests.running import TOKEN, new_host


def moved(home: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = picoclaw(home, "import", *arguments, "--json", TZ="Europe/Berlin")
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def breakcafe(tmp_path: Path) -> Path:
    return homes.breakcafe(tmp_path / "old")


@pytest.fixture
def sipeed(tmp_path: Path) -> Path:
    return homes.sipeed(tmp_path / "old")


def exported(home: Path) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in picoclaw(home, "store", "export").stdout.splitlines():
        row = json.loads(line)
        rows.setdefault(row.pop("table"), []).append(row)
    return rows


def test_a_dry_run_tells_three_lists_and_changes_nothing(own: Path, breakcafe: Path) -> None:
    found = moved(own, "breakcafe", str(breakcafe), "--dry-run")
    assert found["found"]["messages"] == 5
    assert found["found"]["scheduled_tasks"] == 3
    assert not own.exists()
    said = picoclaw(own, "import", "breakcafe", str(breakcafe), "--dry-run").stdout
    assert "would be taken" in said
    assert "Nothing was changed" in said


def test_a_home_of_breakcafe_moves_in_whole(own: Path, breakcafe: Path) -> None:
    found = moved(own, "breakcafe", str(breakcafe))
    rows = exported(own)
    assert [row["text"] for row in rows["messages"]] == [
        "not yet heard",
        "my cat is called <Tom>",
        "Hello Anna",
        "a note of the system",
        "and my dog Rex",
    ]
    assert "&lt;Tom&gt;" in rows["messages"][1]["blocks"][0]["text"]
    tasks = {row["id"]: row for row in rows["scheduled_tasks"]}
    assert {name: row["status"] for name, row in tasks.items()} == {
        "t-cron": "active",
        "t-fast": "paused",
        "t-once": "completed",
    }
    assert tasks["t-cron"]["timezone"] == "Europe/Berlin"
    assert tasks["t-fast"]["schedule_value"] == "1000"
    assert [row["result"] for row in rows["task_runs"]] == ["moo"]
    workspace = own / "workspace"
    assert (workspace / "CLAUDE.md").read_text() == "Be kind."
    assert (workspace / "skills" / "bake" / "SKILL.md").exists()
    assert not (workspace / "away").is_symlink()
    told = "\n".join([*found["changed"], *found["lost"]])
    for name in ("t-fast", "t-bad", "t-lone", "away", "ANTHROPIC_API_KEY", "STORE_DIR"):
        assert name in told
    assert "sk-ant-secret-value" not in told


def test_a_second_run_takes_only_what_is_new(own: Path, breakcafe: Path) -> None:
    moved(own, "breakcafe", str(breakcafe))
    assert moved(own, "breakcafe", str(breakcafe))["new"] == {"files": 0}
    homes.say(breakcafe, 5, "user", "and a fish", "anna")
    assert moved(own, "breakcafe", str(breakcafe))["new"] == {"messages": 1, "files": 0}
    (conversation,) = (row for row in exported(own)["conversations"] if row["id"] == "conv-1")
    assert conversation["message_count"] == 6


def test_a_file_that_is_in_the_workspace_already_stays(own: Path, breakcafe: Path) -> None:
    homes.write(own / "workspace", {"CLAUDE.md": "Mine."})
    found = moved(own, "breakcafe", str(breakcafe))
    assert (own / "workspace" / "CLAUDE.md").read_text() == "Mine."
    assert any(each.startswith("CLAUDE.md: another file") for each in found["lost"])


def test_no_link_that_agents_made_leads_a_file_out_of_the_workspace(own: Path, breakcafe: Path) -> None:
    (own / "workspace").mkdir(parents=True)
    (own / "outside").mkdir()
    (own / "workspace" / "notes").symlink_to(own / "outside")
    done = picoclaw(own, "import", "breakcafe", str(breakcafe))
    assert done.returncode == 1
    assert "notes" in done.stderr
    assert list((own / "outside").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("workspace/sessions/sk_v1_bb.jsonl", '{"role": "user"', "sk_v1_bb.jsonl, line 1: not JSON"),
        ("workspace/sessions/sk_v1_bb.jsonl", "[]\n", "sk_v1_bb.jsonl, line 1: an object was expected"),
        ("workspace/sessions/sk_v1_aa.meta.json", "7", "sk_v1_aa.meta.json: an object was expected"),
        ("workspace/cron/jobs.json", "{", "jobs.json: not JSON"),
        ("config.json", "nope", "config.json: not JSON"),
        (".security.yml", "a: [", ".security.yml: not YAML"),
    ],
)
def test_a_broken_file_is_named_and_nothing_is_half_there(
    own: Path, sipeed: Path, name: str, content: str, said: str
) -> None:
    (sipeed / name).write_text(content)
    done = picoclaw(own, "import", "sipeed", str(sipeed))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not own.exists()


def test_a_database_that_is_none_is_named(own: Path, breakcafe: Path) -> None:
    (breakcafe / "store" / "messages.db").write_bytes(b"no database" * 500)
    done = picoclaw(own, "import", "breakcafe", str(breakcafe))
    assert (done.returncode, "messages.db" in done.stderr) == (1, True)
    assert not own.exists()


@pytest.mark.parametrize("source", ["pipe", "/dev/zero", "."])
def test_what_is_no_file_is_no_export(own: Path, tmp_path: Path, source: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    told = picoclaw(own, "import", "picoclaw", str(tmp_path / source))
    assert (told.returncode, "not a file" in told.stderr) == (1, True), told


@pytest.mark.parametrize("kept", [0, 1, -2, -1], ids=["nothing", "a row", "a row less", "no number"])
def test_an_export_that_was_cut_off_is_none(own: Path, tmp_path: Path, breakcafe: Path, kept: int) -> None:
    moved(own, "breakcafe", str(breakcafe))
    written = picoclaw(own, "store", "export").stdout.splitlines(keepends=True)
    rows = written[:kept] + (written[-1:] if kept == -2 else [])
    (tmp_path / "export.jsonl").write_text("".join(rows))
    told = picoclaw(tmp_path / "new", "import", "picoclaw", str(tmp_path / "export.jsonl"))
    assert (told.returncode, "its export was cut off" in told.stderr) == (1, True), told


def test_a_home_of_sipeed_moves_in_whole(own: Path, sipeed: Path) -> None:
    found = moved(own, "sipeed", str(sipeed))
    rows = exported(own)
    by_conversation = {row["id"]: row["message_count"] for row in rows["conversations"]}
    assert by_conversation["telegram:42"] == 2
    assert by_conversation["main"] == 2
    assert sorted(by_conversation.values()) == [2, 2, 2]
    assert [(row["channel"], row["chat_id"], row["private"]) for row in rows["channel_chats"]] == [
        ("telegram", "42", 1)
    ]
    tasks = {row["prompt"]: row for row in rows["scheduled_tasks"]}
    assert tasks["tell the news"]["conversation_id"] == "telegram:42"
    assert tasks["tell the news"]["next_run"] == homes.AT
    assert tasks["wake up"]["next_run"] == homes.AT
    (ticking,) = (row for prompt, row in tasks.items() if "date" in prompt)
    assert (ticking["status"], ticking["schedule_value"]) == ("paused", "60000")
    workspace = own / "workspace"
    assert (workspace / "MEMORY.md").read_text() == "likes tea"
    assert (workspace / "memory" / "202603" / "20260301.md").exists()
    assert not (workspace / "sessions").exists()
    told = "\n".join([*found["changed"], *found["lost"]])
    for name in ("gpt", "deep", "discord", "voice", "j4", "summary", "2 tool steps"):
        assert name in told


def test_the_settings_of_sipeed_are_those_that_a_start_takes(own: Path, sipeed: Path) -> None:
    moved(own, "sipeed", str(sipeed))
    config = json.loads((own / "config.json").read_text())
    assert [entry["model_name"] for entry in config["model_list"]] == ["sonnet", "sonnet", "deep"]
    assert config["channels"]["telegram"] == {"enabled": False, "allow_from": ["42"]}
    security = own / ".security.yml"
    assert security.stat().st_mode & 0o777 == 0o600
    for hidden in ("sk-ant-one", "sk-ant-two", "1:abc", "hidden-1"):
        assert hidden in security.read_text()
        assert hidden not in (own / "config.json").read_text()
    done = picoclaw(own, "secrets", "list")
    assert done.returncode == 0, done.stderr


def test_an_export_of_this_system_moves_into_another_store(
    own: Path, breakcafe: Path, tmp_path: Path
) -> None:
    moved(own, "breakcafe", str(breakcafe))
    file = tmp_path / "rows.jsonl"
    file.write_text(picoclaw(own, "store", "export").stdout)
    other = tmp_path / "other"
    moved(other, "picoclaw", str(file))
    assert exported(other)["messages"] == exported(own)["messages"]
    assert moved(other, "picoclaw", str(file))["new"] == {"files": 0}


def test_what_moved_in_is_chatted_with_and_its_tasks_run(tmp_path: Path, breakcafe: Path) -> None:
    host = new_host(tmp_path / "host", None)
    names = ("STORE_DIR", "MEMORY_DIR", "LOCAL_DB_PATH")
    places = {name: host.environment[name] for name in names}
    done = picoclaw(tmp_path / "own", "import", "breakcafe", str(breakcafe), **places)
    assert done.returncode == 0, done.stderr
    host.start()
    try:
        with host.client() as client:
            said = client.post(
                "/chat", json={"conversation_id": "conv-1", "message": "what did I say"}
            ).json()
            assert said["status"] == "success"
            assert "Rex" in said["result"]
            assert client.post("/task/trigger", json={"task_id": "t-cron"}).json()["status"] == "success"
    finally:
        host.kill()


@pytest.mark.parametrize("name", ["STORE_DIR", "LOCAL_DB_PATH"])
def test_a_start_on_the_database_of_the_old_system_names_the_command(
    own: Path, breakcafe: Path, name: str
) -> None:
    store = breakcafe / "store"
    before = (store / "messages.db").read_bytes()
    old = {"STORE_DIR": store, "LOCAL_DB_PATH": store / "messages.db"}[name]
    done = process(own, "serve", API_TOKEN=TOKEN, PORT="0", **{name: str(old)})
    assert done.returncode == 2, done.stderr
    assert "picoclaw import breakcafe" in done.stderr
    assert (store / "messages.db").read_bytes() == before
    assert not list(store.glob("snapshot-*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("prompt = x'00ff'", "A row can't be stored, so none is"),
        ("last_run = 'never'", "messages.db: task t-cron: 'never' is not a time"),
    ],
)
def test_an_odd_record_stops_all_of_it_with_a_sentence(
    own: Path, breakcafe: Path, change: str, said: str
) -> None:
    homes.execute(breakcafe, f"UPDATE scheduled_tasks SET {change}")
    done = picoclaw(own, "import", "breakcafe", str(breakcafe))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "conversations" not in exported(own)


def test_messages_without_a_conversation_are_told(own: Path, breakcafe: Path) -> None:
    before = moved(own, "breakcafe", str(breakcafe), "--dry-run")["lost"]
    homes.execute(
        breakcafe, "UPDATE messages SET conversation_id = 'gone' WHERE id = (SELECT min(id) FROM messages)"
    )
    told = moved(own, "breakcafe", str(breakcafe))["lost"]
    assert [each for each in told if each not in before] == ["1 messages, whose conversations are not there"]


def test_a_task_in_a_state_of_no_meaning_is_told(own: Path, breakcafe: Path) -> None:
    homes.execute(breakcafe, "UPDATE scheduled_tasks SET status = 'odd' WHERE id = 't-cron'")
    found = moved(own, "breakcafe", str(breakcafe))
    assert any("t-cron" in each and "'odd'" in each for each in found["lost"])
