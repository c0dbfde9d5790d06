"""A host with the console on, and a real browser in front of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Dialog,
    Error,
    Page,
    Playwright,
    expect,
    sync_playwright,
)

from tests.mcp.programs import NPM, npm_ci
from tests.running import TOKEN, HostProcess, ModelProcess, new_host, running_host, running_model

# What is left of Chromium without windows takes a third less processor time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
NODE = Path(__file__).parent / "node"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
WAIT_MS = 20_000

MakePage = Callable[..., Page]
MakeHost = Callable[..., HostProcess]


@pytest.fixture(scope="package")
def model() -> Iterator[ModelProcess]:
    with running_model() as process:
        yield process


@pytest.fixture(scope="package")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    root = tmp_path_factory.mktemp("console")
    with running_host(root, model.url, {"CONSOLE": "true"}) as process:
        yield process


@pytest.fixture
def make_host(model: ModelProcess, tmp_path: Path) -> Iterator[MakeHost]:
    """Make hosts of one's own, with the console on; they are gone at the end."""
    made: list[HostProcess] = []

    def make(**settings: str) -> HostProcess:
        made.append(new_host(tmp_path / f"host{len(made)}", model.url, {"CONSOLE": "true", **settings}))
        return made[-1]

    yield make
    for process in made:
        if process.process is not None and process.process.poll() is None:
            process.kill()


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    expect.set_options(timeout=WAIT_MS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODE_OPTIONS", f"--require {NODE / 'firefox.cjs'}")
        with sync_playwright() as playwright:
            yield playwright


@pytest.fixture(scope="package")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
    yield browser
    browser.close()


@pytest.fixture(scope="package")
def firefox(playwright: Playwright) -> Iterator[Browser]:
    """The distribution's Firefox, over WebDriver BiDi; it starts for seconds, so it stays until the end."""
    if FIREFOX is None:
        pytest.skip("needs firefox")
    try:
        browser = playwright.firefox.launch(channel="moz-firefox", executable_path=FIREFOX)
        browser.new_context().close()
    except Error as error:
        pytest.skip(f"needs a Firefox that can be driven: {error.message.splitlines()[0]}")
    yield browser
    browser.close()


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> Browser:
    """Chromium, or what a test names as its parameter."""
    browser: Browser = request.getfixturevalue(getattr(request, "param", "chromium"))
    return browser


in_both = pytest.mark.parametrize("browser", ["chromium", "firefox"], indirect=True)
"""For what browsers may do differently; a test takes three times as long in Firefox."""


@pytest.fixture
def make_page(browser: Browser, host: HostProcess) -> Iterator[MakePage]:
    """Open the console in a browser of its own; at the end nothing may have gone wrong in it."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def make(
        place: str = "",
        *,
        url: str | None = None,
        signed_in: bool = True,
        theme: str = "",
        **options: Any,
    ) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.add_init_script(WATCH)
        if theme:
            context.add_init_script(THEME.replace("THEME", theme))
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: faults.append(f"{error}\n{error.stack}"))

        def said(kind: str, text: str) -> None:
            # The browser tells every refusal of the host; that is not a fault of the page.
            if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
                faults.append(text)

        def asked(dialog: Dialog) -> None:
            faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("console", lambda message: said(message.type, message.text))
        page.on("dialog", asked)
        page.goto(f"{url or host.url}/console{place}")
        if signed_in:
            sign_in(page)
        return page

    yield make
    for context in contexts:
        for page in context.pages:
            faults.extend(page.evaluate("window.violations ?? []"))
        context.close()
    assert faults == []


THEME = "if (location.host) localStorage.setItem('picoclaw.theme', 'THEME')"
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
window.pwn = () => window.violations.push("a text has been run");
"""


def knock(page: Page, token: str) -> None:
    page.get_by_label("API token").fill(token)
    page.keyboard.press("Enter")


def sign_in(page: Page) -> None:
    knock(page, TOKEN)
    page.locator(".side").wait_for(state="attached")


@pytest.fixture(scope="package")
def axe() -> str:
    """The source of axe-core, installed once from the lock file."""
    if NPM is None:
        pytest.skip("needs npm")
    return (npm_ci(NODE) / "axe-core" / "axe.min.js").read_text()
