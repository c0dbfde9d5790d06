"""Which skill is in force: built-in, the organisation's over it, a user's beside them but never instead."""

from __future__ import annotations

from host.runs.prompt import Prompt
from host.skills.catalogue import LARGEST_FILE, Shelf, SkillFile, Tier, catalogue
from host.skills.knowledge import Known


def file(name: str, said: str = "does it", size: int = 0) -> SkillFile:
    return SkillFile(name, f"---\nname: {name}\ndescription: {said}\n---\n", size)


def shelf(tier: Tier, *files: SkillFile, path: str | None = None, left_out: int = 0) -> Shelf:
    return Shelf(tier, path or f"/{tier}", files, left_out)


def test_the_organisation_s_takes_the_place_of_a_built_in_one() -> None:
    found = catalogue([shelf("builtIn", file("a"), file("b")), shelf("org", file("a", "our way"))])
    assert [skill.name for skill in found.effective.values()] == ["a", "b"]
    assert found.effective["a"].description == "our way"
    assert found.effective["a"].path == "/org/a"
    assert len(found.tiers["builtIn"]) == 2
    assert found.problems == ()


def test_a_user_s_skill_adds_and_never_replaces() -> None:
    found = catalogue(
        [
            shelf("builtIn", file("a")),
            shelf("org", file("b")),
            shelf("user", file("a", "evil"), file("b", "evil"), file("c"), path="/home/skills"),
            shelf("user", file("c", "later"), file("d"), path="skills"),
        ]
    )
    assert {skill.name: skill.path for skill in found.effective.values()} == {
        "a": "/builtIn/a",
        "b": "/org/b",
        "c": "/home/skills/c",
        "d": "skills/d",
    }
    assert [(one.path, one.problem.split(" has this name")[0]) for one in found.problems] == [
        ("/home/skills/a", "not used: the built-in skill in /builtIn/a"),
        ("/home/skills/b", "not used: the organisation's skill in /org/b"),
        ("skills/c", "not used: the user's skill in /home/skills/c"),
    ]


def test_the_list_is_in_the_order_of_names_whatever_the_order_of_shelves() -> None:
    found = catalogue([shelf("builtIn", file("z"), file("b")), shelf("user", file("c"), file("a"))])
    assert list(found.effective) == ["a", "b", "c", "z"]


def test_broken_and_oversized_ones_are_told_and_harm_no_other() -> None:
    found = catalogue(
        [
            shelf(
                "user",
                SkillFile("broken", "nonsense"),
                SkillFile("gone", fault="it has no SKILL.md"),
                file("big", size=LARGEST_FILE + 1),
                file("good"),
                left_out=3,
            )
        ]
    )
    assert list(found.effective) == ["big", "good"]
    assert [one.path for one in found.problems] == ["/user", "/user/broken", "/user/gone", "/user/big"]
    assert "3 more" in found.problems[0].problem
    assert "not used" in found.problems[1].problem
    assert "is cut" in found.problems[3].problem


def test_the_prompt_lists_what_fits_and_says_once_that_there_are_more() -> None:
    skills = catalogue([shelf("org", *(file(f"skill-{number:03}", "x" * 500) for number in range(200)))])
    listed = next(
        b["text"] for b in Prompt("A", "base").blocks(Known(skills=skills)) if "skill-000" in b["text"]
    )
    lines = [line for line in listed.splitlines() if line.startswith(("- ", "[cut"))]
    assert 1 < len(lines) < 200
    assert [line.startswith("[cut") for line in lines] == [False] * (len(lines) - 1) + [True]
