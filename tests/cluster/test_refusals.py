"""A database that answers and refuses: as if it were away, in its own words, and well again by itself."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import pytest

from shared.store.postgres.driver import REFUSALS
from tests.cluster.server import Server, running_server
from tests.cluster.test_database_away import running
from tests.running import HostProcess, ModelProcess, directive, free_port, new_host, until
from tests.warm_host import warm

ROOT: Final = Path(__file__).parents[2]
HANG_UP: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('picoclaw', 'renamed')"
)
SLOW: Final = directive(
    steps=[
        {"tools": [{"name": "exec", "input": {"command": "echo one"}}], "delay_ms": 100},
        {"text": "finished", "delay_ms": 1500},
    ]
)
REFUSING: Final = {
    "read-only": (
        "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()",
        "ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()",
    ),
    "read-only for who comes": (
        f"ALTER DATABASE picoclaw SET default_transaction_read_only = on; {HANG_UP}",
        "ALTER DATABASE picoclaw RESET default_transaction_read_only",
    ),
    "another password": (
        f"ALTER ROLE picoclaw PASSWORD 'another'; {HANG_UP}",
        "ALTER ROLE picoclaw PASSWORD 'picoclaw-test-password'",
    ),
    "NOLOGIN": (f"ALTER ROLE picoclaw NOLOGIN; {HANG_UP}", "ALTER ROLE picoclaw LOGIN"),
    "no connection left": (
        f"ALTER ROLE picoclaw CONNECTION LIMIT 0; {HANG_UP}",
        "ALTER ROLE picoclaw CONNECTION LIMIT -1",
    ),
    "no connection allowed": (
        f"ALTER DATABASE picoclaw ALLOW_CONNECTIONS false; {HANG_UP}",
        "ALTER DATABASE picoclaw ALLOW_CONNECTIONS true",
    ),
    "no right to connect": (
        f"REVOKE CONNECT ON DATABASE picoclaw FROM PUBLIC, picoclaw; {HANG_UP}",
        "GRANT CONNECT ON DATABASE picoclaw TO PUBLIC, picoclaw",
    ),
    "renamed": (
        f"ALTER DATABASE picoclaw ALLOW_CONNECTIONS false; {HANG_UP}; SELECT pg_sleep(0.3); "
        "ALTER DATABASE picoclaw RENAME TO renamed; ALTER DATABASE renamed ALLOW_CONNECTIONS true",
        f"ALTER DATABASE renamed ALLOW_CONNECTIONS false; {HANG_UP}; SELECT pg_sleep(0.3); "
        "ALTER DATABASE renamed RENAME TO picoclaw; ALTER DATABASE picoclaw ALLOW_CONNECTIONS true",
    ),
    "one table without rights": (
        "\\connect picoclaw\nREVOKE INSERT, UPDATE, DELETE ON messages FROM picoclaw",
        "\\connect picoclaw\nGRANT INSERT, UPDATE, DELETE ON messages TO picoclaw",
    ),
    "a table renamed": (
        "\\connect picoclaw\nALTER TABLE messages RENAME TO away",
        "\\connect picoclaw\nALTER TABLE away RENAME TO messages",
    ),
    "no right to write": (
        "\\connect picoclaw\nREVOKE INSERT, UPDATE ON ALL TABLES IN SCHEMA public FROM picoclaw",
        "\\connect picoclaw\nGRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO picoclaw",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not below pytest's directory, which the server's user may not enter.
    with tempfile.TemporaryDirectory(prefix="postgres-for-tests-") as directory:
        Path(directory).chmod(0o755)
        with running_server(Path(directory) / "server") as server:
            yield server


@pytest.fixture(scope="module")
def host(
    server: Server, model: ModelProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("host"), model.url, {"DATABASE_URL": server.url})
    yield process.start()
    process.kill()


@pytest.mark.parametrize("how", REFUSING)
def test_a_database_that_refuses_is_away_and_a_run_in_flight_waits_for_it(
    server: Server, host: HostProcess, how: str
) -> None:
    refuse, serve = REFUSING[how]
    answers: list[dict[str, Any]] = []

    def talk() -> None:
        with host.client() as client:
            answers.append(client.post("/chat", json={"message": SLOW}).json())

    thread = threading.Thread(target=talk)
    thread.start()
    with host.client() as client:
        until(lambda: running(client))
        superuser(server, refuse)
        try:
            until(lambda: client.get("/ready").status_code == 503)
            health = client.get("/health").json()
            assert (health["status"], health["database"]["ok"]) == ("degraded", False)
            assert "picoclaw_store_durable 0.0" in client.get("/metrics").text
            refused = client.post("/chat", json={"message": "during"})
            assert (refused.status_code, "database" in refused.json()["error"]) == (503, True), refused.text
            assert refused.headers["Retry-After"]
        finally:
            superuser(server, serve)
        until(lambda: client.get("/ready").status_code == 200)
        thread.join(60)
        assert [answer.get("result") for answer in answers] == ["finished"], answers
        again = client.post(
            "/chat", json={"message": "after", "conversation_id": answers[0]["conversation_id"]}
        )
        assert again.json()["status"] == "success"
    assert "picoclaw-test-password" not in host.log_text


def test_limits_of_the_role_undo_no_statement(server: Server, host: HostProcess) -> None:
    limits = ("statement_timeout", "lock_timeout")
    superuser(server, "".join(f"ALTER ROLE picoclaw SET {name} = '1ms';" for name in limits) + HANG_UP)
    try:
        with host.client() as client:
            until(lambda: client.get("/ready").status_code == 200)
            answer = client.post("/chat", json={"message": directive(text="fine")})
            assert (answer.status_code, answer.json().get("result")) == (200, "fine"), answer.text
    finally:
        superuser(server, "ALTER ROLE picoclaw RESET ALL")


def test_a_statement_that_the_server_cancels_is_run_again(server: Server, host: HostProcess) -> None:
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    directory, port = server.socket
    psql = ["psql", "-qAtX", "-h", directory, "-p", port, "-U", "postgres", "picoclaw"]
    answers: list[int] = []
    with subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write("BEGIN; LOCK TABLE conversations IN EXCLUSIVE MODE; SELECT 'held';\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "held\n"
        with host.client() as client:
            message = {"message": directive(text="fine")}
            thread = threading.Thread(
                target=lambda: answers.append(client.post("/chat", json=message).status_code)
            )
            thread.start()
            cancelled = cancel.replace("SELECT", "SELECT bool_or(", 1).replace(" FROM", ") FROM", 1)
            until(lambda: asked(server, cancelled) == "t")
            holder.stdin.close()
            holder.wait(60)
            thread.join(60)
    assert answers == [200]


def test_a_database_that_hangs_is_away_too(server: Server, host: HostProcess) -> None:
    """Frozen under its connections, as behind a network that swallows everything."""
    with host.client() as client:
        processes = [server.process, *server.process.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            until(lambda: client.get("/ready").status_code == 503)
            assert client.get("/health").json()["status"] == "degraded"
            refused = client.post("/chat", json={"message": "during"})
            assert refused.status_code == 503, refused.text
        finally:
            for process in processes:
                process.resume()
        until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/chat", json={"message": "after"}).json()["status"] == "success"


@pytest.mark.parametrize(
    ("how", "words", "setting"),
    [
        ("another password", "password authentication failed", "DATABASE_URL"),
        ("NOLOGIN", "not permitted to log in", "LOGIN"),
        ("no connection left", "too many connections for role", "DATABASE_CONNECTIONS"),
        ("renamed", "does not exist", "DATABASE_URL"),
        ("read-only", "read-only transaction", "DATABASE_URL"),
    ],
)
def test_a_start_that_is_refused_ends_with_the_servers_words_and_what_mends_it(
    server: Server, tmp_path: Path, how: str, words: str, setting: str
) -> None:
    refuse, serve = REFUSING[how]
    superuser(server, refuse)
    try:
        host = new_host(tmp_path / "host", None, {"DATABASE_URL": server.url}).start(wait=False)
        assert host.process is not None
        assert host.process.wait(60) == 2, host.log_text
        said = [line for line in host.log_text.splitlines() if "DATABASE_URL: " in line]
        assert len(said) == 1
        # What only reads may be copied from.
        migrated = None if how == "read-only" else migrate(tmp_path, server.url)
    finally:
        superuser(server, serve)
    assert words in said[0]
    assert setting in said[0]
    assert "Traceback" not in host.log_text
    assert "picoclaw-test-password" not in host.log_text
    if migrated is not None:
        assert migrated.returncode == 2
        assert words in migrated.stderr
        assert "Traceback" not in migrated.stderr
        assert "picoclaw-test-password" not in migrated.stderr


def test_a_database_of_another_program_is_left_alone(server: Server, tmp_path: Path) -> None:
    superuser(server, "CREATE DATABASE theirs OWNER picoclaw")
    url = urlunsplit(urlsplit(server.url)._replace(path="/theirs"))
    asked(server, "CREATE TABLE conversations (id int)", database="theirs")
    host = new_host(tmp_path / "host", None, {"DATABASE_URL": url}).start(wait=False)
    assert host.process is not None
    assert host.process.wait(60) == 2
    migrated = migrate(tmp_path, url)
    assert migrated.returncode == 2
    for said in (host.log_text, migrated.stderr):
        assert "Traceback" not in said
        assert "already exists" in said
        assert "another program" in said


@pytest.mark.skipif(not shutil.which("pgbouncer"), reason="needs PgBouncer (Debian: pgbouncer)")
def test_a_pooler_that_was_not_announced_is_named_with_its_setting(server: Server, tmp_path: Path) -> None:
    with pooler(server) as url:
        host = new_host(tmp_path / "host", None, {"DATABASE_URL": url}).start(wait=False)
        assert host.process is not None
        assert host.process.wait(60) == 2, host.log_text
        assert "unsupported startup parameter" in host.log_text
        assert "DATABASE_POOLER=true" in host.log_text
        migrated = migrate(tmp_path, url)
        assert (migrated.returncode, "DATABASE_POOLER=true" in migrated.stderr) == (2, True)


def test_the_table_in_the_docs_is_the_programs() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/scale.md").read_text(), re.MULTILINE)
    assert {state: cure for state, cure in documented if state[0].isdigit()} == REFUSALS


def superuser(server: Server, statements: str) -> None:
    """Run statements, each in a transaction of its own, as the one who owns the server."""
    asked(server, statements)


def asked(server: Server, statements: str, *, database: str = "postgres") -> str:
    """Return what statements answer that are run so."""
    directory, port = server.socket
    done = subprocess.run(
        ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", directory, "-p", port, "-U", "postgres", database],
        input=statements, text=True, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


def migrate(tmp_path: Path, url: str) -> subprocess.CompletedProcess[str]:
    with warm():
        return subprocess.run(
            [sys.executable, "-m", "host.cli", "store", "migrate", "--to", "sqlite"],
            env={"HOME": str(tmp_path), "DATABASE_URL": url, "STORE_DIR": str(tmp_path / "empty")},
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@contextlib.contextmanager
def pooler(server: Server) -> Iterator[str]:
    """Give the address of a PgBouncer in front of the server while the block lasts."""
    there, port = urlsplit(server.url), free_port()
    nobody = ("setpriv", "--reuid", "nobody", "--clear-groups") if os.geteuid() == 0 else ()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-for-tests-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "users").write_text(f'"{there.username}" "{there.password}"\n')
        (directory / "ini").write_text(
            f"""[databases]
picoclaw = host=127.0.0.1 port={there.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = plain
auth_file = {directory}/users
pool_mode = transaction
unix_socket_dir =
"""
        )
        process = subprocess.Popen([*nobody, "pgbouncer", directory / "ini"], stderr=subprocess.DEVNULL)
        try:
            until(lambda: listens(port))
            yield server.url.replace(f":{there.port}/", f":{port}/")
        finally:
            process.terminate()
            process.wait(60)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
