"""What agents obey is changed by trusted conversations alone; everybody reads it, and writes all else."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.ports import Trust, Workspace
from host.runs.scheduler import FILE
from host.sandbox.client import Sandbox
from host.sandbox.policy import OBEYED, OBEYED_AS_MAIN, SandboxPolicy, sandbox_policy
from host.skills.catalogue import FOLDER
from host.skills.knowledge import MEMORY_FILE, PERSONA_FILES
from host.tools.files_and_commands import SandboxToolset
from shared.settings import load
from tests.sandbox.opened import toolset

BECAUSE = "because of a setting"
ATTEMPTS = (
    "echo evil > CLAUDE.md",
    "echo evil >> MEMORY.md",
    "sed -i s/words/evil/ CLAUDE.md",
    "rm -f CLAUDE.md MEMORY.md",
    "echo evil > e; mv -f e CLAUDE.md",
    "echo evil > e; ln -f e CLAUDE.md; ln -sf e MEMORY.md; cp --remove-destination e MEMORY.md",
    "ln CLAUDE.md alias; echo evil > alias",
    "ln -s CLAUDE.md link; echo evil > link",
    "ln -s . here; echo evil > here/here/MEMORY.md; echo evil > sub/../MEMORY.md",
    "echo evil > AGENTS.md; echo evil > AGENT.md; echo evil > agents.md; mkdir AGENT.md",
    "mkdir -p skills/evil; echo evil > skills/evil/SKILL.md; echo evil > skills/a/SKILL.md",
    "rm -rf skills; mv skills gone; mv skills/a gone; rmdir skills/a",
    'mkdir -p fake/evil; python3 -c \'import os; os.rename("fake", "skills")\'',
    'python3 -c \'import ctypes; ctypes.CDLL(None).renameat2(-100, b"sub", -100, b"skills", 2)\'',
    "mkdir -p .claude/skills/evil; ln -s sub .claude; mkfifo .claude",
    "chmod 000 CLAUDE.md skills; chown 1:1 CLAUDE.md; touch -d 2001-01-01 MEMORY.md",
    "python3 -c 'import os; f = os.open(\"CLAUDE.md\", 0); os.fchmod(f, 0)'",
    "python3 -c 'import os; f = os.open(\"CLAUDE.md\", 0); os.utime(f, (1, 1))'",
    "truncate -s 0 MEMORY.md; python3 -c 'import os; os.open(\"MEMORY.md\", os.O_TRUNC)'",
    "exec 3<MEMORY.md; echo evil > /proc/self/fd/3; echo evil > /dev/fd/3; echo evil > /proc/$$/fd/3",
    "exec 0<MEMORY.md; echo evil > /dev/stdin",
    "echo evil > /proc/self/cwd/MEMORY.md; echo evil > /proc/self/root$PWD/MEMORY.md",
    "cd skills/a; echo evil > SKILL.md; echo evil > ../../CLAUDE.md; echo evil > new",
    'python3 -c \'\nimport os\nf = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o644); os.write(f, b"evil")\n'
    'os.link(f"/proc/self/fd/{f}", "AGENTS.md", dst_dir_fd=os.open(".", 0))\'',
    "mv linked other; mkdir -p linked/evil; rm -rf linked; echo evil > linked/x",
    "echo evil > HEARTBEAT.md",
)
CLOSING = (
    "chmod 000 .",
    "chmod -R a-r .",
    "chmod u-w,u-x .",
    "python3 -c 'import os; os.fchmod(os.open(\".\", 0), 0)'",
)
RACE = """python3 -c '
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
path = ctypes.create_string_buffer(b"harmless1", 16)
def swap():
    while True:
        path.value = b"CLAUDE.md"; path.value = b"harmless1"
threading.Thread(target=swap, daemon=True).start()
until = time.monotonic() + 1.5
while time.monotonic() < until:
    f = libc.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    if f >= 0: os.write(f, b"evil"); os.close(f)
    libc.unlink(path)'"""


@pytest.fixture
def words(ws: Path) -> Path:
    for name in ("CLAUDE.md", "MEMORY.md", "skills/a/SKILL.md", "library/evil/SKILL.md"):
        (ws / name).parent.mkdir(parents=True, exist_ok=True)
        (ws / name).write_text("words\n")
    (ws / "linked").mkdir()
    return ws


@pytest.fixture(params=["level 3", "level 2", "no Landlock"])
async def sandbox(words: Path, request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    policy = SandboxPolicy(
        workspace=words,
        max_level=2 if request.param == "level 2" else 3,
        max_landlock_abi=0 if request.param == "no Landlock" else None,
        read_only_because=BECAUSE,
    )
    async with Sandbox(policy) as running:
        yield running


@pytest.fixture
def stranger(sandbox: Sandbox) -> SandboxToolset:
    return toolset(sandbox, "stranger", trust=Trust.UNTRUSTED)


def facts(ws: Path) -> dict[str, object]:
    """Return what agents obey, all that can be said of it."""
    names = [*OBEYED, *OBEYED_AS_MAIN, "agents.md", "skills/a", "skills/a/SKILL.md", "skills/evil"]
    return {name: _fact(ws / name) for name in names}


def _fact(path: Path) -> object:
    if not os.path.lexists(path):
        return None
    status = path.lstat()
    content = path.read_bytes() if path.is_file() else sorted(p.name for p in path.iterdir())
    return status.st_ino, status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, content


def test_what_reaches_a_prompt_is_guarded() -> None:
    assert {*PERSONA_FILES, MEMORY_FILE, FOLDER} <= set(OBEYED)
    assert FILE in OBEYED_AS_MAIN


async def test_no_command_of_a_stranger_changes_what_is_obeyed(words: Path, stranger: SandboxToolset) -> None:
    await stranger.call("exec", {"command": "true"})  # from here on all of it is the commands' own uid's
    before = facts(words)
    for attempt in ATTEMPTS:
        await stranger.call("exec", {"command": f"{{ {attempt}\n}} 2>&1"})
        assert facts(words) == before, attempt


async def test_exchanging_the_path_while_it_is_judged_changes_nothing(
    words: Path, stranger: SandboxToolset
) -> None:
    await stranger.call("exec", {"command": "true"})
    before = facts(words)
    result = await stranger.call("exec", {"command": RACE})
    assert not result.is_error, result.text
    assert facts(words) == before


async def test_no_file_tool_of_a_stranger_changes_what_is_obeyed(
    words: Path, stranger: SandboxToolset
) -> None:
    await stranger.call("exec", {"command": "ln -s CLAUDE.md link; ln -s skills shelf"})
    before = facts(words)
    for tool, path in (
        ("write_file", "CLAUDE.md"),
        ("write_file", "./sub/../MEMORY.md"),
        ("write_file", str(words / "AGENTS.md")),
        ("write_file", "skills/evil/SKILL.md"),
        ("write_file", "shelf/evil/SKILL.md"),
        ("write_file", ".claude/skills/evil/SKILL.md"),
        ("write_file", "HEARTBEAT.md"),
        ("write_file", "link"),
        ("append_file", "memory.MD"),
        ("append_file", "MEMORY.md"),
        ("edit_file", "CLAUDE.md"),
    ):
        content = {"old_text": "words", "new_text": "evil"} if tool == "edit_file" else {"content": "evil"}
        more = {"overwrite": True} if tool == "write_file" else {}
        result = await stranger.call(tool, {"path": path, **content, **more})
        assert result.is_error, path
        assert result.text.endswith(f"is read-only in this conversation. {BECAUSE}"), result.text
        assert facts(words) == before, path


async def test_a_stranger_reads_it_and_does_everything_else(words: Path, stranger: SandboxToolset) -> None:
    work = """set -e; cat CLAUDE.md
mkdir -p d/e; cd d; echo one > f; mv f g; ln g h; ln -s h i; cat i; rm h; rmdir e
echo two >> g; chmod 640 g; touch -d 2001-01-01 g; stat -c '%a %Y' g
umask 077; echo > u; mkdir v; stat -c %a u v
echo out > /dev/null; echo out > /dev/stderr; (echo x > new) 2>/dev/null
python3 -c 'import tempfile; tempfile.TemporaryFile().write(b"1"); tempfile.mkdtemp()'
git init -q .; git add .; git -c user.name=n -c user.email=e@x commit -qm x; git log --oneline | wc -l
tar cf $TMPDIR/x.tar .; mkdir $HOME/t; tar xf $TMPDIR/x.tar -C $HOME/t; ls $HOME/t
mkfifo p; echo through > p & cat p > got; wait; cat got; ! (timeout 0.2 sh -c "echo > p")
truncate -s 1 got; set -C; echo > fresh; (echo > fresh) 2>&1 | grep -c overwrite; cd ..; rm -rf d"""
    result = await stranger.call("exec", {"command": work})
    assert not result.is_error, result.text
    assert result.text.splitlines()[:12] == [
        "words", "one", "640 978307200", "600", "700", "out", "1", "g", "i", "new", "u", "v",
    ]  # fmt: skip
    assert "through\n1\n" in result.text
    assert not (await stranger.call("write_file", {"path": "notes/x.md", "content": "mine"})).is_error
    assert not (await stranger.call("write_file", {"path": "x.md", "content": "mine"})).is_error
    assert "words" in (await stranger.call("read_file", {"path": "CLAUDE.md"})).text


async def test_a_stranger_changes_the_workspace_s_mode_and_times_but_locks_nobody_out(
    ws: Path, sandbox: Sandbox
) -> None:
    stranger = toolset(sandbox, "stranger", trust=Trust.UNTRUSTED)
    harmless = """set -e; rm -rf CLAUDE.md MEMORY.md 2>/dev/null || true; mkdir d; echo x > d/f
chmod u+w .; chmod 711 .; chmod 755 .; touch -d 2001-01-01 .; stat -c %Y .
tar cf $TMPDIR/x.tar ./d --no-recursion .; tar xpf $TMPDIR/x.tar; chmod -R u+w d"""
    done = await stranger.call("exec", {"command": harmless})
    assert not done.is_error, done.text
    assert "978307200\n" in done.text
    for closing in CLOSING:
        assert "not permitted" in (await stranger.call("exec", {"command": f"{closing} 2>&1"})).text, closing
        assert ws.stat().st_mode & 0o777 == 0o755, closing


async def test_a_stranger_s_files_grow_by_name_no_further_than_its_limit(
    words: Path, stranger: SandboxToolset
) -> None:
    grow = "echo > big; python3 -c 'import os; os.truncate(\"big\", {})' 2>&1 | tail -1"
    for command in (grow.format(1 << 40), f"ulimit -f 1; {grow.format(1 << 20)}"):
        assert "File too large" in (await stranger.call("exec", {"command": command})).text
        assert (words / "big").stat().st_size == 1
    assert not (await stranger.call("exec", {"command": grow.format(1 << 20)})).is_error
    assert (words / "big").stat().st_size == 1 << 20


async def test_a_stranger_is_told_why_a_command_may_not(stranger: SandboxToolset) -> None:
    refused = await stranger.call("exec", {"command": "echo evil > CLAUDE.md"})
    assert "MEMORY.md" in refused.text
    assert f"is read-only in this conversation. {BECAUSE}]" in refused.text


async def test_trusted_conversations_change_persona_and_the_main_one_its_heartbeat(
    words: Path, sandbox: Sandbox
) -> None:
    trusted, main = toolset(sandbox, "trusted", trust=Trust.TRUSTED), toolset(sandbox, "main")
    for tools in (trusted, main):
        done = await tools.call(
            "exec", {"command": "echo new > MEMORY.md; mkdir -p skills/b; echo > AGENTS.md"}
        )
        assert not done.is_error
    assert (await trusted.call("exec", {"command": "echo x > HEARTBEAT.md"})).is_error
    assert (await trusted.call("write_file", {"path": "HEARTBEAT.md", "content": "x"})).is_error
    assert not (words / "HEARTBEAT.md").exists()
    assert not (await main.call("exec", {"command": "echo x > HEARTBEAT.md"})).is_error
    assert (await trusted.call("exec", {"command": "echo y >> HEARTBEAT.md"})).is_error
    assert (words / "HEARTBEAT.md").read_text() == "x\n"


async def test_before_its_tools_are_asked_for_a_conversation_is_a_stranger(
    words: Path, sandbox: Sandbox
) -> None:
    asked = {"data": base64.b64encode(b"png").decode()}
    stranger = Workspace("c", sandbox.root)
    await sandbox.file(stranger, "save_file", {"path": "inbox/photo.png", **asked})
    with pytest.raises(Exception, match="read-only"):
        await sandbox.file(stranger, "save_file", {"path": "CLAUDE.md", **asked})
    tools = toolset(sandbox, "c", trust=Trust.TRUSTED)
    assert not (
        await tools.call("write_file", {"path": "CLAUDE.md", "content": "x", "overwrite": True})
    ).is_error


async def test_links_to_what_is_obeyed_lead_to_what_is_guarded(words: Path, sandbox: Sandbox) -> None:
    links = {"CLAUDE.md": "by/name", "by/name": "../docs/persona.md", "AGENT.md": "alias/persona.md"}
    links |= {"alias": "docs", "skills/linked": "../repository/skill"}
    (words / "CLAUDE.md").unlink()
    for place in ("docs/persona.md", "repository/skill/SKILL.md", "by/free"):
        (words / place).parent.mkdir(parents=True)
        (words / place).write_text("words\n")
    for name, target in links.items():
        (words / name).symlink_to(target)
    stranger = toolset(sandbox, "stranger", trust=Trust.UNTRUSTED)
    for attempt in (
        "echo evil > docs/persona.md",
        "mv docs other; mkdir docs; echo evil > docs/persona.md",
        "rm -rf docs",
        "echo evil > AGENT.md",
        "rm by/name; echo evil > by/free; mv -f by/free by/name",
        "mkdir evil; echo evil > evil/persona.md; rm alias; ln -sfn evil alias; mv -fT evil alias",
        "echo evil > repository/skill/SKILL.md; echo > repository/skill/new; mv repository r",
    ):
        await stranger.call("exec", {"command": attempt})
        for name in ("CLAUDE.md", "AGENT.md", "skills/linked/SKILL.md"):
            assert (words / name).read_text() == "words\n", attempt
    assert os.listdir(words / "skills/linked") == ["SKILL.md"]
    for path in ("docs/persona.md", "by/name", "alias", "skills/linked/SKILL.md"):
        wanted = {"path": path, "content": "x", "overwrite": True}
        assert (await stranger.call("write_file", wanted)).is_error, path
    assert not (await stranger.call("exec", {"command": "echo > repository/free; echo > by/free"})).is_error


@pytest.mark.parametrize(("skills", "named"), [("own-skills", True), ("", False), ("../elsewhere", False)])
def test_a_directory_of_skills_within_the_workspace_may_not_be_changed_either(
    tmp_path: Path, skills: str, named: bool
) -> None:
    places = {"MEMORY_DIR": str(tmp_path / "ws"), "SKILLS_DIR": str(tmp_path / "ws" / skills)}
    assert ("own-skills" in policy_of(tmp_path, places).obeyed) is named


@pytest.mark.parametrize(("heartbeat", "guarded"), [("true", Trust.TRUSTED), ("false", Trust.UNTRUSTED)])
def test_what_a_heartbeat_will_do_is_never_a_stranger_s_to_say(
    tmp_path: Path, heartbeat: str, guarded: Trust
) -> None:
    policy = policy_of(tmp_path, {"PICOCLAW_HEARTBEAT_ENABLED": heartbeat})
    closed_to = [trust for trust in Trust if FILE in policy.read_only(trust)]
    assert closed_to == [trust for trust in Trust if trust <= guarded]


def policy_of(home: Path, environment: dict[str, str]) -> SandboxPolicy:
    return sandbox_policy(load({"PICOCLAW_HOME": str(home), "HOME": str(home), **environment}), ())


async def test_a_stranger_gives_a_link_or_what_it_leads_to_another_name(stranger: SandboxToolset) -> None:
    command = "echo x > f && ln -s f l && ln -L l followed && ln -P l itself && stat -c %F followed itself"
    result = await stranger.call("exec", {"command": command})
    assert result.text.startswith("regular file\nsymbolic link\n"), result.text
