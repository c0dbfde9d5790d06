"""The guard: the exact texts, for what is certainly meant, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.sandbox import shell
from host.sandbox.guard import DANGEROUS, OUTSIDE, Guard, private
from host.sandbox.policy import SandboxPolicy
from host.sandbox.shell import parse
from shared.errors import Misconfigured
from tests.attack import entries

WORKSPACE = Path("/srv/memory")


def guard(**settings: object) -> Guard:
    return Guard(SandboxPolicy(workspace=WORKSPACE, **settings), WORKSPACE)  # type: ignore[arg-type] # by name


def test_the_texts_are_the_agreed_ones() -> None:
    assert OUTSIDE == "Command blocked by safety guard (path outside working dir)"
    assert DANGEROUS == "Command blocked by safety guard (dangerous pattern detected)"


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf /",
        "rm -fr /*",
        "rm -r -f ~",
        "rm -rf ..",
        "rm --recursive --force ../other",
        "rm -rf /etc",
        "sudo rm -rf /srv",
        "ls; rm -rf ./x/../../y",
        "bash -c 'rm -rf /'",
        'eval "rm -rf /"',
        r"r\m -rf /",
        "'rm' -rf \"/\"",
        "echo $(rm -rf /)",
        "find . | xargs rm -rf /",
        "mkfs.ext4 /dev/sda1",
        "format c:",
        "diskpart",
        "dd if=x of=/dev/sda",
        "cat x > /dev/nvme0n1",
        "shutdown -h now",
        "sudo reboot",
        "systemctl poweroff",
        "init 0",
        ":(){ :|:& };:",
        "bomb() { bomb | bomb & }; bomb",
        "timeout -s KILL 5 reboot",
        "sudo -u root sh -c 'rm -rf /'",
        "cd x; rm -rf ../..",
        "halted() { echo no; }; /sbin/halt",
    ],
)
@pytest.mark.parametrize("confined", [True, False])
def test_what_is_certainly_destructive_is_refused(line: str, confined: bool) -> None:
    assert guard(restrict_to_workspace=confined).refusal(line) == DANGEROUS


DOCUMENTED = re.findall(
    r"^\| `(.+)` \| (runs|refused|as a path outside) \| (runs|refused) \|$",
    (Path(__file__).parents[2] / "docs/sandbox.md").read_text(),
    re.M,
)


@pytest.mark.parametrize(("line", "dangerous", "strict"), DOCUMENTED)
@pytest.mark.parametrize("confined", [True, False])
def test_the_guard_refuses_what_its_table_says(
    line: str, dangerous: str, strict: str, confined: bool
) -> None:
    for is_strict, outcome in ((False, dangerous), (True, strict)):
        judge = guard(restrict_to_workspace=confined, strict_guard=is_strict)
        outside = OUTSIDE if confined else None
        expected = {"refused": DANGEROUS, "as a path outside": outside, "runs": None}[outcome]
        assert judge.refusal(line) == expected


def test_the_table_of_the_guard_has_every_kind_of_the_list() -> None:
    assert len(DOCUMENTED) > 20


@pytest.mark.parametrize(
    "line",
    [
        "echo x | sudo tee -a /dev/nvme0n1",
        "tee /dev//sda < x",
        "tee /dev/../dev/sda",
        "mv x /dev/mmcblk0",
        "cp -t /dev/sda x",
        "cp --target-directory=/dev/sda x",
        "cat x | cp /dev/stdin /dev/disk/by-id/a",
        "shred /dev/sdb1",
        "truncate -s 0 /dev/vda",
        "install -m 600 x /dev/md0",
        "cat x >| /dev/sda",
        "cat x &>> /dev/sda",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_no_way_of_writing_to_a_disk_passes(line: str, strict: bool) -> None:
    assert guard(restrict_to_workspace=False, strict_guard=strict).refusal(line) == DANGEROUS


@pytest.mark.parametrize(
    "line",
    [
        "rm -fr build",
        "rm --recursive --force build",
        "rm -rfv build",
        "cd x && sudo rm -rf y",
        "rm -rf $x",
        "sh -c 'rm -rf build'",
        "ls | xargs rm -rf",
        "find . -type d -execdir rm -rf {} ';'",
        "DEL /F /Q a",
        "erase /f a",
        "rd /S /Q a",
        "rmdir /s/q a",
        "dd bs=1 if=a",
        "mkfs --version",
        "./shutdown",
    ],
)
def test_the_strict_guard_refuses_its_list_to_the_letter(line: str) -> None:
    assert guard(strict_guard=True).refusal(line) == DANGEROUS
    assert guard(restrict_to_workspace=False).refusal(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "cat /root/x",
        "cat ../secret",
        "cat ~/.ssh/id_rsa",
        "ls ~root",
        "cat sub/../../x",
        "cat -s /root/x notes",
        "ln /root/x notes",
        "cp a /var/lib/b",
        "echo x > /root/y",
        "head -n 1 /home/*/notes",
    ],
)
def test_a_literal_path_outside_is_refused_up_front(line: str) -> None:
    assert guard().refusal(line) == OUTSIDE
    assert guard(restrict_to_workspace=False).refusal(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf build",
        "rm -rf -- *",
        "rm -rf /srv/memory/build",
        "rm -rf $x",
        "echo format",
        "echo reboot",
        "grep -r shutdown .",
        "dd if=/dev/zero of=x bs=1 count=1",
        "dd if=x of=/dev/null",
        "git log --format=%h",
        "echo $(date) ${x}",
        "kill %1",
        "cat /srv/memory/notes.md",
        "cat sub/../ok.txt",
        "cd sub && cat ../ok.txt",
        "cat /etc/passwd /usr/share/dict/words",
        "sed -n '/foo/p' x",
        "echo hi > /dev/null 2>/dev/stderr",
        "cat <<EOF\nrm -rf /\nEOF",
        "# rm -rf /\ntrue",
        "f() { echo f; }; f & f | cat",
        'sort() { [ $# -gt 0 ] || return; sort "$1" | cat; sort "$2" & }; sort b a',
        "halt() { echo no; }; halt",
        "./format x && bin/shutdown",
        "command -v reboot && mkfs.ext4 --version",
        "echo sh -c 'rm -rf /'",
        "cd build && rm -rf ../dist && cat ../notes",
        "rm -rf '~backup'; cat ~+/x",
        "cat //srv//memory/x && rm -rf //srv/memory/build",
        "ln -s /app/data data; diff --label /a --label /b x y",
        "mkdir ~/.ssh; cat ~/.ssh/config; echo x > ~/.netrc",
        "awk '/..\\//' x",
        "unterminated 'quote",
        "",
    ],
)
def test_harmless_lines_pass(line: str) -> None:
    assert guard().refusal(line) is None


@pytest.mark.parametrize("name", ["sandbox.yaml", "own.yaml", "thin.yaml", "third.yaml"])
def test_no_harmless_command_of_the_corpus_is_refused(name: str) -> None:
    for entry in entries.load(name)["benign"]:
        given = {"command": entry["input"]} if isinstance(entry["input"], str) else entry["input"]
        if "command" in given:
            line = given["command"].replace("@WS@", str(WORKSPACE)).replace("@TMP@", f"{private()}x/1")
            cwd = given.get("cwd", ".").replace("@TMP@", f"{private()}x/1")
            assert guard().refusal(line, cwd) is None, entry["id"]


def test_custom_patterns_apply_to_each_command_not_to_the_line() -> None:
    judged = guard(deny_patterns=("^curl ",), allow_patterns=("^cat /root/motd$",))
    assert judged.refusal("true; curl x") == DANGEROUS
    assert judged.refusal("echo 'curl x'") is None
    assert judged.refusal("cat /root/motd") is None
    assert judged.refusal("cat /root/motd; cat /root/other") == OUTSIDE


def test_custom_patterns_apply_to_what_is_too_long_to_be_parsed() -> None:
    judged = guard(deny_patterns=("^curl ",))
    long = f"echo '{'x' * shell.LONGEST}'"
    assert judged.refusal(f"{long}; curl x") == DANGEROUS
    assert judged.refusal(long) is None
    assert guard().refusal(f"{long}; curl x") is None


def test_the_longest_line_that_is_parsed_is_judged() -> None:
    line = "rm -rf / #".ljust(shell.LONGEST, "x")
    assert guard().refusal(line) == DANGEROUS
    assert guard().refusal(f"{line}x") is None


def test_no_line_costs_the_host_its_time_its_memory_or_its_life() -> None:
    """Each of these kept the parser busy for seconds to minutes, took gigabytes, or ended the process."""
    program = """
import resource, sys
from pathlib import Path
from host.sandbox.policy import SandboxPolicy
from host.sandbox.shell import parse
from host.sandbox.guard import Guard
from host.sandbox.shell import LONGEST
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
guard = Guard(SandboxPolicy(workspace=Path("/srv/memory")), Path("/srv/memory"))
hostile = ["a|", "<<<", "<<E\\n", "time ", "$[", "((;;", "|&", "x() "]
hostile += ["|| ", "[[ ", '"', "{a,", "\\0", "a;", "-s ", "${"]
for size in (LONGEST - 16, 130_000):
    for unit in hostile:
        line = (unit * size)[:size]
        assert guard.refusal(line) is guard.refusal(f"echo {line} x") is None, unit
print(guard.refusal("rm -rf /"))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-500:]
    assert ended.stdout.strip() == DANGEROUS


def test_a_command_in_many_wrappers_is_seen_through_to_a_depth() -> None:
    assert guard().refusal("nice " * 7 + "rm -rf /") == DANGEROUS
    assert guard().refusal("nice " * 5000 + "true") is None


def test_allowed_paths_are_inside() -> None:
    judged = guard(read_paths=("/opt/data", "/mnt/*/logs"), write_paths=("/srv/out",))
    assert judged.refusal("cat /opt/data/x; ls /mnt/a/logs; cp a /srv/out/b") is None


def test_a_bad_pattern_stops_the_start() -> None:
    with pytest.raises(Misconfigured, match="regular expression"):
        guard(deny_patterns=("(",))


WORDS = (
    "ls -l git push origin sudo env nohup find . -name -exec rm -rf a/b sh -c bash eval xargs -n 1 timeout "
    "5s --foo=bar 12 1.5 0x1 -f - -- , : a:b a,b nice ../x /usr/bin/git time.py builtin command -v exec test"
)


@given(st.lists(st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=5), min_size=1, max_size=4))
@settings(deadline=None)
def test_lines_of_plain_words_are_read_as_the_grammar_reads_them(commands: list[list[str]]) -> None:
    for between in (" && ", "|", "; ", " || "):
        line = between.join(" ".join(words) for words in commands)
        # With a comment behind it a line is no plain one.
        assert parse(line) == parse(f"{line} #")


@pytest.mark.parametrize("line", ['eval "$x" rm -rf /', 'sh "$x" -c "rm -rf /"'])
def test_words_that_nobody_knows_are_no_reason_to_judge_those_around_them(line: str) -> None:
    assert guard(restrict_to_workspace=False).refusal(line) is None


def test_a_function_that_calls_itself_once_beside_what_it_starts_is_no_fork_bomb() -> None:
    assert guard(restrict_to_workspace=False).refusal("again() { sleep 1 & again; }; again") is None
