"""The page of a refusal in a real browser: its style, its size, its accessibility."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, expect

from tests.support.harness import Server, StartServer

pytestmark = pytest.mark.once  # a browser, not our Python

BACKGROUNDS = {"light": "rgb(246, 247, 249)", "dark": "rgb(15, 18, 22)"}  # --back in board.css


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_visitor_without_a_certificate_reads_what_to_do(
    start_server: StartServer,
    browser: Browser,
    tmp_path: Path,
    scheme: Literal["light", "dark"],
    width: int,
) -> None:
    """In the board's colours, on a phone too; each system's steps open without a script."""
    server = start_server(tls={"client_certificate": "optional"})
    context = browser.new_context(
        ignore_https_errors=True,
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text))
    answer = page.goto(server.url + "/")
    assert answer is not None
    assert answer.status == 400
    expect(page.locator("h1")).to_have_text("Your browser sent no certificate")
    assert complaints == [
        "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    ]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == BACKGROUNDS[scheme]
    for steps in page.locator("details").all():
        assert not steps.locator("li").first.is_visible()
        steps.locator("summary").click()
        assert steps.locator("li").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    # Axe needs a script, which the page's own policy refuses: the same page, without the policy.
    copy = context.new_page()
    copy.set_content(page.content())
    violations = Axe().run(copy).response["violations"]
    assert [f"{one['id']}: {one['nodes'][0]['html']}" for one in violations] == []
    context.close()


def test_where_a_certificate_is_required_the_browser_says_so(
    server: Server, browser: Browser
) -> None:
    """Each time, in its own words: the alert is read before the connection ends."""
    for _ in range(10):
        context = browser.new_context(ignore_https_errors=True)
        with pytest.raises(Error, match="ERR_BAD_SSL_CLIENT_AUTH_CERT"):
            context.new_page().goto(server.url + "/")
        context.close()
