"""The board in a real browser with client certificates, and attacks from pages of other sites."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.support.harness import LOOPBACK, Server, StartServer, free_port
from tests.support.lineage import begin_log
from tests.support.users_command import run_users

pytestmark = pytest.mark.once  # a browser, not our Python

PATIENCE_MS = 15_000
EVIL = "<img src=x onerror=alert(1)>@example.com"
Visit = Callable[..., Page]

# To make the pictures of the documentation: STATUS_TESTS_SCREENSHOTS=docs/images
SCREENSHOTS = os.environ.get("STATUS_TESTS_SCREENSHOTS")


@pytest.fixture
def visit(browser: Browser, certs: Path) -> Iterator[Visit]:
    """Open a server's board with a client certificate. An error or a blocked resource fails."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def visit(server: Server, name: str = "operator", **settings: Any) -> Page:
        context = browser.new_context(
            ignore_https_errors=True,  # the browser does not know our CA; the server knows theirs
            client_certificates=[
                {
                    "origin": server.url,
                    "certPath": certs / f"{name}.crt",
                    "keyPath": certs / f"{name}.key",
                }
            ],
            timezone_id="UTC",
            **{"locale": "en-GB", **settings},
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text)
                if said.location["url"].startswith(server.url) and is_fault(said)
                else None
            ),
        )
        page.goto(server.url + "/")
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def is_fault(said: Any) -> bool:
    """Return whether a console message is a fault; a lost connection is logged there, too."""
    if said.location["url"].endswith("/favicon.ico"):
        return False  # which a browser requests beside an answer that is no page
    lost = ("net::ERR_", "503", "status of 403")
    return said.type in ("error", "warning") and not any(text in said.text for text in lost)


def is_live(page: Page) -> None:
    expect(page.locator("#connection")).to_have_text("Live")


def row(page: Page, email: str) -> Any:
    return page.locator(f'#rows tr[data-email="{email}"]')


def fill(server: Server, count: int, minutes: int = 1) -> None:
    """Record users who check in once a minute, but for some who stopped two minutes ago.

    Every ninth is offline. The last one was seen last.
    """
    server.rows(
        "WITH given AS (SELECT %s::int AS count, %s::int AS minutes), moments AS ("
        " SELECT n, row_number() OVER (ORDER BY m, n) AS seq,"
        " now() - (minutes - m - n / count::float) * interval '1 minute' AS at"
        " FROM given, generate_series(1, count) n, generate_series(0, minutes - 1) m"
        " WHERE n %% 9 <> 0 AND n %% 13 <> 0 OR m < greatest(1, minutes - 2)"
        "), entries AS ("
        " SELECT *, 'user' || lpad(n::text, 5, '0') || '@example.com' AS email,"
        " ('192.0.2.' || n %% 250)::inet AS ip, 40000 + n %% 20000 AS port FROM moments"
        "), log AS ("
        " INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial)"
        " SELECT seq, at, 'check-in', email, ip, port, '', '' FROM entries"
        "), newest AS (SELECT DISTINCT ON (email) * FROM entries ORDER BY email, seq DESC"
        "), status AS ("
        " INSERT INTO user_status (email, seq, last_seen, first_seen, client_ip, client_port,"
        " issuer, serial, offline)"
        " SELECT email, seq, at, at - interval '3 days', ip, port, '', '', n %% 9 = 0 FROM newest"
        "), last AS (SELECT max(seq) AS seq FROM entries)"
        " UPDATE head SET seq = last.seq, swept = last.seq FROM last RETURNING head.seq",
        count,
        minutes,
    )


def test_a_check_in_appears_by_itself(start_server: StartServer, visit: Visit) -> None:
    """With the user, the address, and its age, which keeps counting."""
    server = start_server()
    page = visit(server)
    is_live(page)
    expect(page.locator("#empty")).to_have_text("No users yet.")
    assert server.request("POST", "/api/client").status == 204
    client = row(page, "valid_user@example.com")
    expect(client.locator("td").nth(0)).to_have_text("online")
    expect(page.locator('[data-filter="online"] b')).to_have_text("1")
    expect(client.locator("td").nth(3)).to_contain_text(f"{LOOPBACK}:")
    expect(client.locator("td").nth(2)).to_have_text(re.compile(r"[2-9] s ago"))
    expect(page.locator('[data-filter="all"] b')).to_have_text("1")
    assert server.request("POST", "/api/client").status == 204
    expect(client.locator("td").nth(2)).to_have_text(re.compile(r"[01] s ago"))


def test_offline_and_back_are_shown(start_server: StartServer, visit: Visit) -> None:
    """A user stops checking in: late, then offline; online after a check-in."""
    server = start_server(presence={"interval_s": 2, "offline_after_s": 6})
    assert server.request("POST", "/api/client").status == 204
    page = visit(server)
    client = row(page, "valid_user@example.com")
    expect(client.locator("td").nth(0)).to_have_text("late")
    expect(client.locator("td").nth(0)).to_have_text("offline")
    expect(page.locator('[data-filter="offline"] b')).to_have_text("1")
    expect(page.locator("#changes")).to_contain_text("valid_user@example.com offline")
    client.click()
    assert server.request("POST", "/api/client").status == 204
    history = page.locator("#history li b")
    expect(history).to_have_text(["back", "offline", "new"])
    expect(page.locator("#line span")).to_have_count(2)  # here, away, here again
    expect(page.locator("#line")).to_have_attribute("aria-label", re.compile("^Online from .*; "))
    page.keyboard.press("Escape")
    expect(client.locator("td").nth(0)).to_have_text("online")


def test_enrolled_and_removed_users_come_and_go(start_server: StartServer, visit: Visit) -> None:
    """An enrolled user appears before the first check-in; a removed one disappears."""
    server = start_server(access={"admins": ["operator@example.com"]})
    page = visit(server)
    is_live(page)
    somebody = row(page, "somebody@example.com")
    assert server.request("PUT", "/api/users/somebody@example.com", cert="operator").status == 201
    expect(somebody.locator("td")).to_have_text(["never", "somebody@example.com", "never", ""])
    page.reload()  # from the snapshot
    expect(somebody.locator("td")).to_have_text(["never", "somebody@example.com", "never", ""])
    is_live(page)
    gone = server.request("DELETE", "/api/users/somebody@example.com", cert="operator")
    assert gone.status == 204
    expect(somebody).to_have_count(0)
    expect(page.locator('[data-filter="all"] b')).to_have_text("0")


def test_an_open_dialog_stays_up_to_date(start_server: StartServer, visit: Visit) -> None:
    """The user becomes late and offline in it. It closes when the user is removed."""
    server = start_server(
        presence={"interval_s": 2, "offline_after_s": 8},
        access={"admins": ["operator@example.com"]},
    )
    assert server.request("POST", "/api/client").status == 204
    page = visit(server)
    row(page, "valid_user@example.com").click()
    state, seen = page.locator("#user-facts dd").nth(0), page.locator("#user-facts dd").nth(1)
    expect(state).to_have_text("online")
    expect(seen).to_have_text(re.compile("2 s ago$"))
    expect(state).to_have_text("late")
    expect(state).to_have_text("offline")
    expect(page.locator("#history li b")).to_have_text(["offline", "new"])
    gone = server.request("DELETE", "/api/users/valid_user@example.com", cert="operator")
    assert gone.status == 204
    expect(page.locator("#user")).not_to_be_visible()


def test_the_history_has_the_time_of_each_event(start_server: StartServer, visit: Visit) -> None:
    """Of `offline` its own, not that of the last check-in; of `enrolled` too."""
    server = start_server(
        presence={"interval_s": 1, "offline_after_s": 3},
        access={"admins": ["operator@example.com"]},
    )
    path = "/api/users/valid_user@example.com"
    assert server.request("PUT", path, cert="operator").status == 201
    assert server.request("POST", "/api/client").status == 204
    page = visit(server)
    expect(row(page, "valid_user@example.com").locator("td").nth(0)).to_have_text("offline")
    row(page, "valid_user@example.com").click()
    expect(page.locator("#history li b")).to_have_text(["offline", "new", "enrolled"])
    events = server.request("GET", f"{path}/history").json["events"]
    moments = [event.get("at", event["last_seen"]) for event in events[:2]] + [events[2]["at"]]
    shown = page.evaluate(
        "(moments) => moments.map((at) => new Date(at).toLocaleString(undefined,"
        " {dateStyle: 'medium', timeStyle: 'medium'}))",
        moments,
    )
    assert shown[0] != shown[1]
    expect(page.locator("#history time")).to_have_text(shown)


def test_an_erased_user_disappears(start_server: StartServer, visit: Visit, tmp_path: Path) -> None:
    """Also if the page was not connected when the user was removed: the entry has no name then."""
    port = free_port()
    first = start_server(server={"port": port})
    for cert in ("client", "operator"):
        assert first.request("POST", "/api/client", cert=cert).status == 204
    page = visit(first)
    row(page, "valid_user@example.com").click()
    assert first.stop() == 0
    assert run_users(first, tmp_path, "erase", "valid_user@example.com").returncode == 0
    start_server(url=first.database_url, server={"port": port})
    expect(page.locator("#user")).not_to_be_visible()
    is_live(page)
    expect(row(page, "operator@example.com")).to_be_visible()
    expect(row(page, "valid_user@example.com")).to_have_count(0)
    expect(page.locator('[data-filter="all"] b')).to_have_text("1")


def test_what_a_failover_lost_disappears(start_server: StartServer, visit: Visit) -> None:
    """The page takes a new snapshot. A failover that lost nothing costs it none."""
    server = start_server(access={"admins": ["operator@example.com"]})
    for cert in ("client", "operator"):
        assert server.request("POST", "/api/client", cert=cert).status == 204
    page = visit(server)
    is_live(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    begin_log(server)
    assert server.request("POST", "/api/client").status == 204
    enrolled = server.request("PUT", "/api/users/new@example.com", cert="operator")
    assert enrolled.status == 201
    expect(row(page, "new@example.com")).to_be_visible()
    assert asked == []
    begin_log(server, 1)
    assert server.request("POST", "/api/client").status == 204
    expect(row(page, "operator@example.com")).to_have_count(0)
    expect(row(page, "new@example.com")).to_have_count(0)
    expect(row(page, "valid_user@example.com")).to_be_visible()
    is_live(page)
    assert asked


def test_search_takes_several_words_and_unicode(start_server: StartServer, visit: Visit) -> None:
    """All words must match. The Unicode form of a domain stands beside the canonical one."""
    server = start_server(access={"admins": ["operator@example.com"]})
    for name in ("anna@müller.example", "ben@müller.example", "anna@other.example"):
        assert server.request("PUT", f"/api/users/{quote(name)}", cert="operator").status == 201
    page = visit(server)
    anna = row(page, "anna@xn--mller-kva.example").locator("td").nth(1)
    expect(anna).to_have_text("anna@xn--mller-kva.examplemüller.example")
    expect(anna.locator("bdi")).to_have_text("müller.example")
    expect(anna).to_have_attribute("title", "anna@xn--mller-kva.example (müller.example)")
    for search, found in (
        ("müller", 2),
        ("Anna@MÜLLER", 1),
        ("mu\u0308ller", 2),
        ("xn--mller", 2),
        ("anna example", 2),
        (" example  anna müller ", 1),
        ("anna ben", 0),
    ):
        page.locator("#search").fill(search)
        expect(page.locator("#rows tr[data-email]"), search).to_have_count(found)
    page.locator("#search").fill("anna müller")
    anna.click()
    expect(page.locator("#user-title")).to_have_text("anna@xn--mller-kva.example")
    expect(page.locator("#user-facts")).to_contain_text("müller.example")


def test_names_are_decoded_as_python_does(server: Server, visit: Visit) -> None:
    """Punycode of many scripts. An invalid label stays as it is."""
    rng = random.Random(1)  # noqa: S311 - the same names each time
    letters = "abcxyz09äöüßéñλжщ日本語अआ한글\u0627\u0628\u062c\u062fद𐐨𠀀"
    labels = ["".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(300)]
    labels = [label for label in labels if not label.isascii()]
    page = visit(server)
    decode = """async (names) => {
        const { unicodeDomain } = await import("/board/idn.js");
        return names.map((name) => unicodeDomain(`a@${name}.example`));
    }"""
    encoded = [f"xn--{label.encode('punycode').decode()}" for label in labels]
    assert page.evaluate(decode, encoded) == [f"{label}.example" for label in labels]
    zero_width, upper, separator = (
        f"xn--{text.encode('punycode').decode()}" for text in ("a\u200bb", "Äb", "ü.b")
    )
    for nothing in (
        *("", "plain", "xn--", "xn--a", "xn--a-", "xn--ü", "xn--99999999", "xn--0.xn--1"),
        f"xn--{'9' * 250}",
    ):
        assert page.evaluate(decode, [nothing]) == [""], nothing
    assert page.evaluate(decode, [zero_width, upper, separator]) == ["", "", ""]


def test_a_crowd_is_searched_sorted_and_walked_by_keyboard(
    start_server: StartServer, visit: Visit
) -> None:
    """Of ten thousand users few rows are in the page, and every one can be reached."""
    server = start_server()
    fill(server, 10_000)
    page = visit(server)
    expect(page.locator('[data-filter="all"] b')).to_have_text("10,000")
    expect(page.locator("#table")).to_have_attribute("aria-rowcount", "10001")
    assert page.locator("#rows tr").count() < 100
    page.keyboard.press("/")
    page.keyboard.type("user0777")
    expect(page.locator("#shown")).to_have_text("10 of 10,000")
    page.keyboard.press("ArrowDown")
    expect(row(page, "user07770@example.com")).to_be_focused()
    page.keyboard.press("End")
    expect(row(page, "user07779@example.com")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#user-title")).to_have_text("user07779@example.com")
    page.keyboard.press("Escape")
    page.locator("#search").fill("")
    page.locator('[data-filter="offline"]').click()
    expect(page.locator("#shown")).to_have_text("1,111 of 10,000")
    page.locator('[data-filter="all"]').click()
    page.locator('th[data-sort="seen"] button').click()
    expect(page.locator("#rows tr[data-email]").first).to_have_attribute(
        "data-email", "user10000@example.com"
    )
    page.locator('th[data-sort="seen"] button').click()
    expect(page.locator('th[data-sort="seen"]')).to_have_attribute("aria-sort", "descending")
    expect(page.locator("#rows tr[data-email]").first).to_have_attribute(
        "data-email", "user00001@example.com"
    )
    page.locator("#rows tr[data-email]").first.focus()
    page.keyboard.press("End")
    expect(row(page, "user10000@example.com")).to_be_focused()
    expect(row(page, "user10000@example.com")).to_be_in_viewport()


def test_the_connection_is_lost_and_regained(start_server: StartServer, visit: Visit) -> None:
    """Events of the meantime are shown afterwards."""
    port = free_port()
    first = start_server(server={"port": port})
    page = visit(first)
    is_live(page)
    expect(page.locator("#rate-now")).to_have_text("0")
    assert first.stop() == 0
    expect(page.locator("#connection")).to_contain_text("trying again")
    expect(page.locator("#rate-now")).to_have_text("")  # unknown, which is not 0
    elsewhere = start_server(url=first.database_url)
    assert elsewhere.request("POST", "/api/client").status == 204
    again = start_server(url=first.database_url, server={"port": port})
    is_live(page)
    expect(page.locator("#rate-now")).to_have_text(re.compile(r"\d"))
    expect(row(page, "valid_user@example.com")).to_be_visible()
    assert again.request("POST", "/api/client").status == 204
    expect(row(page, "valid_user@example.com").locator("td").nth(0)).to_have_text("online")


def test_a_dead_connection_is_noticed(start_server: StartServer, visit: Visit) -> None:
    """One that stays open, and brings nothing, not even the stream's keep-alive."""
    server = start_server()
    page = visit(server)
    page.clock.install()
    page.reload()
    is_live(page)
    server.process.send_signal(signal.SIGSTOP)
    try:
        page.clock.fast_forward("01:00")
        expect(page.locator("#connection")).to_have_text("Connection lost, trying again")
    finally:
        server.process.send_signal(signal.SIGCONT)
    page.clock.fast_forward("00:30")
    is_live(page)


def test_an_ordinary_user_gets_a_403_page(server: Server, visit: Visit) -> None:
    """It says what the user may see. The board's files are forbidden, too."""
    page = visit(server, "client")
    expect(page.locator("h1")).to_have_text("Only readers may see this page")
    assert violations(page) == []
    expect(page.locator("b")).to_have_text("valid_user@example.com")
    assert server.request("GET", "/").status == 403
    assert server.request("GET", "/board/board.js").status == 403
    assert server.request("GET", "/board/board.js", cert="operator").status == 200
    for nothing in ("nothing.js", "index.html", "../board.py", "..%2fboard.py", "vendor/"):
        assert server.request("GET", f"/board/{nothing}", cert="operator").status == 404


def test_names_are_text(start_server: StartServer, visit: Visit) -> None:
    """Text of the database is shown as it is, never as markup."""
    server = start_server()
    fill(server, 1)
    server.rows("UPDATE user_status SET email = %s RETURNING email", EVIL)
    page = visit(server)
    expect(page.locator("#rows td").nth(2)).to_have_text(EVIL)
    assert page.locator("#rows img").count() == 0


@pytest.mark.parametrize("look", ["light", "dark", "narrow"])
def test_it_looks_right_and_is_accessible(
    start_server: StartServer, visit: Visit, tmp_path: Path, look: str
) -> None:
    """Nothing overflows at any size, and axe finds nothing. Takes the pictures for the docs."""
    server = start_server()
    fill(server, 250, minutes=6)
    for name in ("anna@xn--mller-kva.example", "ben@xn--mller-kva.example"):
        server.rows("INSERT INTO user_status (email, seq) VALUES (%s, 1) RETURNING seq", name)
    for _ in range(3):
        assert server.request("POST", "/api/client").status == 204
    page = visit(
        server,
        color_scheme="dark" if look == "dark" else "light",
        viewport={"width": 390, "height": 844}
        if look == "narrow"
        else {"width": 1280, "height": 800},
        reduced_motion="reduce",
    )
    is_live(page)
    page.locator('th[data-sort="seen"] button').click()
    expect(row(page, "valid_user@example.com").locator("td").nth(0)).to_have_text("online")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 18, 22)") == (look == "dark")
    expect(page.locator("#chart canvas")).to_have_count(1)
    expect(page.locator("#rate-now")).to_have_text(re.compile(r"\d+"))
    folder = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    page.screenshot(path=folder / f"board-{look}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert violations(page) == []
    row(page, "valid_user@example.com").click()
    expect(page.locator("#history li")).to_have_count(3)
    page.screenshot(path=folder / f"board-{look}-user.png")
    assert violations(page) == []


def violations(page: Page) -> list[str]:
    """Return the violations that axe finds."""
    found = Axe().run(page).response["violations"]
    return [f"{one['impact']}: {one['id']}: {one['nodes'][0]['html']}" for one in found]


def test_the_chart_shows_what_was_checked_in(server: Server, visit: Visit) -> None:
    """Each check-in in its second, no `offline`, and a gap for seconds without data."""
    page = visit(server)
    is_live(page)
    times, counts = page.evaluate(
        """async () => {
            const { Rate } = await import("/board/model.js");
            const rate = new Rate(5);
            rate.knownFrom = 97;
            const event = (event, second) =>
                rate.add({ event, last_seen: new Date(second * 1000).toISOString() });
            event("check-in", 98), event("new", 98), event("back", 99), event("offline", 99);
            rate.knownTo = 99;
            return rate.series(101_500);
        }"""
    )
    assert times == [96, 97, 98, 99, 100]
    assert counts == [None, 0, 2, 1, None]


def test_the_chart_knows_where_its_events_begin(start_server: StartServer, visit: Visit) -> None:
    """Also if the oldest of the newest 5,000 is no check-in."""
    server = start_server()
    fill(server, 5100)
    server.rows(
        "UPDATE check_in SET event = 'enrolled', last_seen = NULL, client_ip = NULL,"
        " client_port = NULL WHERE seq = (SELECT seq - 4999 FROM head) RETURNING seq"
    )
    page = visit(server)
    known_from = page.evaluate(
        """async () => {
            const { Feed } = await import("/board/feed.js");
            const { Model, Rate } = await import("/board/model.js");
            const rate = new Rate(300);
            await new Feed(new Model(), rate, () => {}, () => {}).load();
            return rate.knownFrom;
        }"""
    )
    assert 0 < known_from < float("inf")


@pytest.mark.parametrize("width", [500, 900, 1100, 2400])
def test_the_chart_labels_each_minute_once_and_whole(
    server: Server, visit: Visit, width: int
) -> None:
    """At any width, also if the last second is a whole minute and the labels are `08:01 AM`."""
    page = visit(server, locale="en-US")
    is_live(page)
    labels = page.evaluate(
        """async (width) => {
            const { Chart } = await import("/board/chart.js");
            const place = document.createElement("div");
            place.style.width = `${width}px`;
            document.body.append(place);
            const found = [];
            const original = CanvasRenderingContext2D.prototype.fillText;
            CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
                const right = x + this.measureText(text).width / 2;
                const label = text.includes(":") && place.contains(this.canvas);
                if (label) found.push([text, right, this.canvas.width]);
                original.call(this, text, x, y);
            };
            const times = Array.from({ length: 300 }, (_, i) => 1_800_000_060 - 299 + i);
            const chart = new Chart(place);
            chart.show([times, times.map(() => 1)]);
            const pause = () => new Promise((done) => setTimeout(done, 300));
            await pause();
            found.length = 0;
            chart.plot.redraw();
            await pause();
            CanvasRenderingContext2D.prototype.fillText = original;
            return found;
        }""",
        width,
    )
    texts = [text for text, _, _ in labels]
    assert len(texts) >= 2
    assert len(set(texts)) == len(texts), texts
    assert all(right <= canvas for _, right, canvas in labels), labels


def test_nothing_but_the_boards_own_files_runs(server: Server, visit: Visit) -> None:
    """The page, the 403 page and each file have the policy, and the browser enforces it."""
    for path, cert in (("/", "operator"), ("/board/board.js", "operator"), ("/", "client")):
        connection = server.connect(cert)
        connection.request("GET", path, headers={"Accept": "text/html"})
        headers = connection.getresponse().headers
        connection.close()
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    page = visit(server)
    is_live(page)
    allowed = page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener("securitypolicyviolation", () => done("blocked"));
            const script = document.createElement("script");
            try { script.text = "document.title = 'run'"; } catch { done("blocked"); }
            document.head.append(script);
            setTimeout(() => done(document.title), 2000);
        })"""
    )
    assert allowed == "blocked"
    assert page.title() == "Presence"


def test_axe_can_find_something(server: Server, visit: Visit) -> None:
    """A button without a name is found."""
    page = visit(server)
    is_live(page)
    page.evaluate("document.body.append(document.createElement('button'))")
    assert any("button-name" in one for one in violations(page))


@contextlib.contextmanager
def elsewhere(html: str) -> Iterator[str]:
    """Serve one page on another origin; yields its URL."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer((LOOPBACK, 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{LOOPBACK}:{server.server_port}/"
        finally:
            server.shutdown()


def test_a_page_of_another_site_achieves_nothing(start_server: StartServer, visit: Visit) -> None:
    """Its requests have the user's certificate. The server refuses them however they are sent."""
    server = start_server()
    page = visit(server)
    is_live(page)
    # The board itself may send such a request: below, the certificate is not what is missing.
    own = page.evaluate("fetch('/api/client', {method: 'POST'}).then((answer) => answer.status)")
    assert own == 204
    page.goto("about:blank")
    before = server.rows("SELECT count(*) FROM check_in")
    form = f'<form method="post" action="{server.url}/api/client"></form>'
    with elsewhere(form) as url:
        page.goto(url)
        for mode in ("cors", "no-cors"):
            answered = page.evaluate(
                "([url, mode]) => fetch(url, {method: 'POST', mode, credentials: 'include'})"
                ".then((answer) => answer.type, (error) => 'blocked')",
                [server.url + "/api/client", mode],
            )
            assert answered == ("blocked" if mode == "cors" else "opaque")
        heard = page.evaluate(
            "(url) => new Promise((done) => { const socket = new WebSocket(url);"
            " socket.onopen = () => done('open'); socket.onerror = () => done('refused'); })",
            server.url.replace("https:", "wss:") + "/api/socket",
        )
        assert heard == "refused"
        with page.expect_navigation() as navigation:
            page.evaluate("document.forms[0].submit()")
        assert navigation.value.status == 403
        page.goto("about:blank")
    refused = [
        event
        for event in server.events("request forbidden")
        if "other web sites" in event["reason"]
    ]
    assert {event["method"] for event in refused} >= {"POST", "GET"}
    assert server.rows("SELECT count(*) FROM check_in") == before
