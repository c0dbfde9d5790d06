"""How the console's files are served: without a token, only those that are listed."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx2
import pytest

from host.http.console import FILES, HERE
from tests.console.conftest import NODE, MakeHost
from tests.mcp.programs import NPM, npm_ci
from tests.running import HostProcess

ROOT = Path(__file__).parent.parent.parent
TEXTS = {name: (HERE / name).read_text() for name in FILES}
OURS = {name: text for name, text in TEXTS.items() if not name.startswith("vendor/")}
SCRIPTS = {name: text for name, text in OURS.items() if name.endswith(".js")}
VENDOR = HERE / "vendor"
VENDORED = json.loads((VENDOR / "vendor.json").read_text())


def stranger(host: HostProcess) -> httpx2.Client:
    return host.client(None)


def test_it_is_off_unless_it_is_switched_on(make_host: MakeHost) -> None:
    host = make_host(CONSOLE="").start()
    with stranger(host) as client, host.client() as known:
        for path in ("/", "/console", "/console/", "/console/app.js"):
            assert client.get(path).status_code == 401
            assert known.get(path).status_code == 404


def test_the_files_need_no_token_and_the_api_still_does(host: HostProcess) -> None:
    with stranger(host) as client:
        page = client.get("/console")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for name in FILES:
            assert client.get(f"/console/{name}").status_code == 200, name
        for path in ("/chat", "/tasks", "/usage", "/openapi.json", "/v1/models"):
            assert client.get(path).status_code == 401, path
        assert client.post("/console").status_code == 405


def test_a_browser_that_asks_for_the_root_is_led_to_the_console(host: HostProcess) -> None:
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    with stranger(host) as client:
        led = client.get("/", headers=accept)
        assert (led.status_code, led.headers["location"]) == (307, "console")
        assert client.get("/", headers=accept, follow_redirects=True).text == TEXTS["index.html"]
        assert client.get("/").status_code == 404
        assert client.post("/", headers=accept).status_code == 405


def test_every_answer_has_the_policy_and_the_other_headers(host: HostProcess) -> None:
    with stranger(host) as client:
        for path in ("/", "/console", "/console/", *(f"/console/{name}" for name in FILES)):
            headers = client.get(path, headers={"Accept": "text/html"}).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            for part in (
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
                "frame-ancestors 'none'",
            ):
                assert part in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cross-origin-opener-policy"] == "same-origin"
            assert "set-cookie" not in headers


def test_what_has_not_changed_is_not_sent_again(host: HostProcess) -> None:
    with stranger(host) as client:
        first = client.get("/console/app.js")
        etag = first.headers["etag"]
        assert first.headers["cache-control"] == "no-cache"
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = client.get("/console/app.js", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == etag
        for other in ('"other"', etag.strip('"'), ""):
            assert client.get("/console/app.js", headers={"If-None-Match": other}).status_code == 200
        head = client.head("/console/app.js")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(first.content))


BESIDE = [
    "/console/../openapi.json",
    "/console/..%2f..%2fpyproject.toml",
    "/console/%2e%2e/app.py",
    "/console/..\\app.py",
    "/console//etc/passwd",
    "/console/app.js/",
    "/console/APP.JS",
    "/console/app.js%00.html",
    "/console/.",
    "/console/console.py",
    "/console/node_modules/x.js",
    "/console/app.js.map",
]


@pytest.mark.parametrize("path", BESIDE)
def test_nothing_beside_the_listed_files_is_there(host: HostProcess, path: str) -> None:
    raw = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", host.port), timeout=60) as connection:
        connection.sendall(raw)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")), answer[:200]


def test_every_file_that_is_there_is_listed() -> None:
    there = {str(path.relative_to(HERE)) for path in HERE.rglob("*") if path.is_file()}
    licences = {f"vendor/{each['licence_file']}" for each in VENDORED}
    assert there - FILES == {"vendor/vendor.json", *licences}
    assert sum(len(text.encode()) for text in OURS.values()) < 200_000
    assert sum(len(text.encode()) for text in TEXTS.values()) < 500_000


def test_what_others_wrote_is_what_they_published_with_its_licence_beside() -> None:
    assert {f"vendor/{each['file']}" for each in VENDORED} == FILES - OURS.keys()
    lock = json.loads((NODE / "package-lock.json").read_text())["packages"]
    for each in VENDORED:
        content = (VENDOR / each["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == each["sha256"], each["file"]
        pinned = lock[f"node_modules/{each['package']}"]
        assert (pinned["version"], pinned["integrity"]) == (each["version"], each["package_integrity"])
        assert pinned["license"] == each["licence"]
        assert "Copyright" in (VENDOR / each["licence_file"]).read_text()


@pytest.mark.skipif(NPM is None, reason="needs npm")
def test_the_copies_are_the_files_of_the_locked_packages() -> None:
    packages = npm_ci(NODE)
    for each in VENDORED:
        published = packages / each["package"] / each["from"]
        assert (VENDOR / each["file"]).read_bytes() == published.read_bytes(), each["file"]


def test_the_address_with_a_slash_leads_to_the_page(host: HostProcess) -> None:
    with stranger(host) as client:
        moved = client.get("/console/", follow_redirects=True)
        assert moved.url.path == "/console"


def test_the_page_has_nothing_inline_and_nothing_of_others() -> None:
    page = TEXTS["index.html"]
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|javascript:", page) == []
    for name, text in OURS.items():
        if name != "icon.svg":
            assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[\w.]+", text) == [], name
    assert (
        re.findall(r"@import|url\(", "".join(text for name, text in TEXTS.items() if name.endswith(".css")))
        == []
    )


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_no_script_makes_markup_or_code_of_text(name: str) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
        r"|setHTMLUnsafe|\beval\b|new Function|srcdoc|createPolicy|setTimeout\(['\"`]"
    )
    found = [word for word in re.findall(forbidden, SCRIPTS[name]) if word != "srcdoc" or name != "dom.js"]
    assert found == []


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_import_is_of_a_listed_file(name: str) -> None:
    for target in re.findall(r'from "([^"]+)"', SCRIPTS[name]):
        assert target.removeprefix("./") in FILES, target


def test_the_wheel_has_the_console(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"host/console/{name}" for name in FILES} <= set(archive.namelist())


def test_without_an_api_token_the_page_is_there_and_the_api_says_what_is_missing(make_host: MakeHost) -> None:
    host = make_host(API_TOKEN="", ALLOW_NO_TOKEN_500="1").start()
    with stranger(host) as client:
        assert client.get("/console").status_code == 200
        assert client.get("/chat").json()["error"] == "API_TOKEN is not configured"
