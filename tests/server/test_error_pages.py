"""Errors in a browser are pages with advice; for every other client they are problem+json."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from base64 import b64encode
from http.client import HTTPMessage

import pytest

from tests.support.certs_tool import ROOT
from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer
from tests.support.trust_site import Site

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
NO_CERTIFICATE = {
    "type": "about:blank",
    "title": "Bad Request",
    "status": 400,
    "detail": "No required SSL certificate was sent",
}
OPTIONAL = {"client_certificate": "optional"}


def get(
    server: Server, path: str, cert: str | None = "client", **headers: str
) -> tuple[int, HTTPMessage, str]:
    """Return the answer that a browser gets: its status, its headers and its page."""
    connection = server.connect(cert)
    connection.request("GET", path, headers={"Accept": BROWSER, **headers})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def is_a_safe_page(headers: HTTPMessage, page: str) -> None:
    """Its policy allows its own style alone, by the style's digest; it has no other code."""
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = headers["Content-Security-Policy"].split("; ")
    assert policy[:3] == ["default-src 'none'", f"style-src 'sha256-{digest}'", "img-src data:"]
    assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert not re.search(r"<script|\son\w+=|\sstyle=|\ssrc=|https?://", page)


@pytest.mark.parametrize("path", ["/", "/api/client", "/api/users", "/nowhere"])
def test_a_browser_without_a_certificate_is_told_how_to_get_one(
    start_server: StartServer, path: str
) -> None:
    """On each system, and from whom."""
    status, headers, page = get(start_server(tls=OPTIONAL), path, cert=None)
    assert status == 400
    is_a_safe_page(headers, page)
    assert "<h1>Your browser sent no certificate</h1>" in page
    assert "Ask the operator of this server for a certificate" in page
    systems = ("Windows: ", "macOS: ", "Linux: ", "Firefox ", "Android: ", "iPhone, iPad: ")
    assert all(f"<summary>{system}" in page for system in systems)
    assert f"request {headers['X-Request-Id']}" in page


@pytest.mark.parametrize(
    ("method", "accept"),
    [
        ("GET", None),
        ("GET", "*/*"),
        ("GET", "application/json"),
        ("GET", "application/json, text/html;q=0"),
        ("GET", "text/htmlx, text/*"),
        ("POST", BROWSER),
        ("DELETE", BROWSER),
    ],
)
def test_other_clients_get_the_bytes_that_they_always_got(
    start_server: StartServer, method: str, accept: str | None
) -> None:
    """Check-ins and other changes too, whatever they accept."""
    server = start_server(tls=OPTIONAL)
    connection = server.connect(None)
    connection.request(method, "/api/client", headers={} if accept is None else {"Accept": accept})
    answer = connection.getresponse()
    assert answer.status == 400
    assert answer.read() == json.dumps(NO_CERTIFICATE).encode()
    names = {"Cache-Control", "Connection", "Content-Length", "Content-Type", "Date"}
    assert set(answer.headers) == names | {"X-Request-Id"}
    assert answer.headers["Content-Type"] == "application/problem+json"
    connection.close()


@pytest.mark.parametrize("path", ["/", "/api/users", "/api/events?after=0", "/board/board.js"])
def test_a_user_who_is_no_reader_is_told_who_can_help(server: Server, path: str) -> None:
    status, headers, page = get(server, path)
    assert status == 403
    is_a_safe_page(headers, page)
    assert "<h1>Only readers may see this page</h1>" in page
    assert "you are <b>valid_user@example.com</b>" in page
    assert "<code>access.readers</code>" in page
    assert "Import" not in page


def test_a_revoked_certificate_is_told_what_to_do(site: Site) -> None:
    server = site.start()
    site.revoke("client")
    status, headers, page = get(server, "/")
    assert status == 403
    is_a_safe_page(headers, page)
    assert "<p>The server says: The certificate is revoked.</p>" in page
    assert "Ask the operator of this server for a certificate" in page


def test_behind_a_proxy_a_missing_certificate_is_told_too(start_server: StartServer) -> None:
    server = start_server(ingress={"mode": "proxy", "trusted_proxies": [LOOPBACK]})
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=PATIENCE_S)
    connection.request("GET", "/", headers={"Accept": BROWSER, "X-Forwarded-For": "10.1.2.3"})
    answer = connection.getresponse()
    assert answer.status == 400
    page = answer.read().decode()
    is_a_safe_page(answer.headers, page)
    assert "<h1>Your browser sent no certificate</h1>" in page
    connection.close()


def test_a_certificate_without_an_e_mail_is_told_what_to_do(server: Server) -> None:
    status, headers, page = get(server, "/", cert="bad_client")
    assert status == 400
    is_a_safe_page(headers, page)
    assert "<h1>Your certificate is not accepted</h1>" in page
    assert "CN must be a valid email address" in page
    assert "Import a certificate" in page


def test_a_path_that_does_not_exist_leads_to_the_board(server: Server) -> None:
    status, headers, page = get(server, "/nowhere")
    assert status == 404
    is_a_safe_page(headers, page)
    assert "<h1>There is nothing here</h1>" in page
    assert '<a href="/">' in page


def test_a_link_on_another_site_leads_to_the_board_and_nowhere_else(server: Server) -> None:
    """A link to the page that was asked for would let the other site act after all."""
    status, headers, page = get(server, "/api/client", **{"Sec-Fetch-Site": "cross-site"})
    assert status == 403
    is_a_safe_page(headers, page)
    assert re.findall(r'href="([^"]*)"', page) == ["data:,", "/"]


def test_text_from_outside_is_no_markup(server: Server) -> None:
    """A parameter that is quoted in the sentence of an error."""
    status, headers, page = get(server, "/api/users/<b>x", cert="operator")
    assert status == 400
    is_a_safe_page(headers, page)
    assert "<b>" not in page


def test_the_pages_have_the_style_of_the_board(server: Server) -> None:
    _, _, page = get(server, "/nowhere")
    board = (ROOT / "tornado_status/api/board/files/board.css").read_text("utf-8")
    for colours in (board[: board.index("}")], "prefers-color-scheme: dark"):
        assert colours in page
