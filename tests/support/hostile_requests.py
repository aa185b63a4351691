"""A corpus of requests, plain to hostile, for whoever judges HTTP here; sent as they stand.

`RULES` says of each what RFC 9112 demands or allows.
"""

from __future__ import annotations

from dataclasses import dataclass

HOST = b"Host: localhost\r\n"
CHECK_IN = b"POST /api/client HTTP/1.1\r\n" + HOST


def _chunked(body: bytes) -> bytes:
    return CHECK_IN + b"Transfer-Encoding: chunked\r\n\r\n" + body


def _coded(coding: bytes) -> bytes:
    return CHECK_IN + b"Transfer-Encoding: " + coding + b"\r\n\r\n"


LAST_CHUNK = b"0\r\n\r\n"

# Is in what others might take for the body of the request before it, or for the next request.
SMUGGLED = b"GET /api/client HTTP/1.1\r\n" + HOST + b"X-Request-ID: smuggled\r\n\r\n"
SMUGGLED_CHUNK = b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + LAST_CHUNK
SMUGGLED_LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)

CORPUS: dict[str, bytes] = {
    # Requests of real clients.
    "bare": CHECK_IN + b"\r\n",
    "empty body": CHECK_IN + b"Content-Length: 0\r\n\r\n",
    "curl": CHECK_IN + b"User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
    "keep-alive": CHECK_IN + b"Connection: keep-alive\r\n\r\n",
    "Keep-Alive": CHECK_IN + b"Connection: Keep-Alive\r\n\r\n",
    "close": CHECK_IN + b"Connection: close\r\n\r\n",
    "body": CHECK_IN + b"Content-Length: 5\r\n\r\nhello",
    "chunked": _chunked(b"5\r\nhello\r\n0\r\n\r\n"),
    "expect": CHECK_IN + b"Content-Length: 0\r\nExpect: 100-continue\r\n\r\n",
    "put": CHECK_IN.replace(b"POST", b"PUT") + b"\r\n",
    "patch": CHECK_IN.replace(b"POST", b"PATCH") + b"\r\n",
    "get": CHECK_IN.replace(b"POST", b"GET") + b"\r\n",
    "head": CHECK_IN.replace(b"POST", b"HEAD") + b"\r\n",
    "options": CHECK_IN.replace(b"POST", b"OPTIONS") + b"\r\n",
    "delete": CHECK_IN.replace(b"POST", b"DELETE") + b"\r\n",
    "http 1.0": CHECK_IN.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
    "two pipelined": (CHECK_IN + b"\r\n") * 2,
    "pipelined get": CHECK_IN + b"\r\n" + CHECK_IN.replace(b"POST", b"GET") + b"\r\n",
    "pipelined nonsense": CHECK_IN + b"\r\n" + b"\x00\x01nonsense\r\n\r\n",
    "origin": CHECK_IN + b"Origin: https://localhost\r\n\r\n",
    # Framing: who believes what about the body's length.
    "both lengths": CHECK_IN + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": CHECK_IN + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
    "two equal lengths": CHECK_IN + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "length list": CHECK_IN + b"Content-Length: 0, 0\r\n\r\n",
    "negative length": CHECK_IN + b"Content-Length: -1\r\n\r\n",
    "plus length": CHECK_IN + b"Content-Length: +0\r\n\r\n",
    "hex length": CHECK_IN + b"Content-Length: 0x0\r\n\r\n",
    "spaced length": CHECK_IN + b"Content-Length:  0 \r\n\r\n",
    "double zero": CHECK_IN + b"Content-Length: 00\r\n\r\n",
    "unicode length": CHECK_IN + "Content-Length: \u0660\r\n\r\n".encode(),
    "underscored length": CHECK_IN + b"Content-Length: 0_0\r\n\r\n",
    "empty length": CHECK_IN + b"Content-Length:\r\n\r\n",
    "name with space": CHECK_IN + b"Content-Length : 0\r\n\r\n",
    "huge length": CHECK_IN + b"Content-Length: 99999999999999999999\r\n\r\n",
    "identity coding": CHECK_IN + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked twice": CHECK_IN + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked tab": CHECK_IN + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "vertical tab coding": CHECK_IN + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": _chunked(b"zz\r\n\r\n"),
    "negative chunk": _chunked(b"-1\r\n\r\n"),
    "chunk without end": _chunked(b"5\r\nhelloXX0\r\n\r\n"),
    "chunk extension": _chunked(b"0;x=y\r\n\r\n"),
    "large chunk": _chunked(b"ffffffffffffffff\r\n"),
    "smuggled": CHECK_IN
    + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "coding in HTTP/1.0": _chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "kept coding in HTTP/1.0": _chunked(b"0\r\n\r\n").replace(
        b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n"
    ),
    "unknown coding": _coded(b"x-rot13") + LAST_CHUNK,
    "gzip": _coded(b"gzip") + LAST_CHUNK,
    "gzip, chunked": _coded(b"gzip, chunked") + LAST_CHUNK,
    "chunked, gzip": _coded(b"chunked, gzip") + LAST_CHUNK,
    "chunked, identity": _coded(b"chunked, identity") + LAST_CHUNK,
    "chunked in two lines": _coded(b"gzip\r\nTransfer-Encoding: chunked") + LAST_CHUNK,
    "no coding": _coded(b"") + LAST_CHUNK,
    "Chunked": _coded(b"Chunked") + LAST_CHUNK,
    "chunked with a parameter": _coded(b"chunked;q=1") + LAST_CHUNK,
    "chunked in quotes": _coded(b'"chunked"') + LAST_CHUNK,
    "xchunked": _coded(b"xchunked") + LAST_CHUNK,
    "coding with space": CHECK_IN + b"Transfer-Encoding : chunked\r\n\r\n" + LAST_CHUNK,
    "coding with tab": CHECK_IN + b"Transfer-Encoding\t: chunked\r\n\r\n" + LAST_CHUNK,
    "coding with underscore": CHECK_IN + b"Transfer_Encoding: chunked\r\n\r\n",
    "folded coding": _coded(b"\r\n chunked") + LAST_CHUNK,
    "folded length": CHECK_IN + b"Content-Length:\r\n 5\r\n\r\nhello",
    "length behind a carriage return": CHECK_IN + b"Content-Length: 0\rX: 5\r\n\r\n",
    "length and nul": CHECK_IN + b"Content-Length: 5\x00\r\n\r\nhello",
    "unequal length list": CHECK_IN + b"Content-Length: 5, 0\r\n\r\nhello",
    "equal length list": CHECK_IN + b"Content-Length: 5, 5\r\n\r\nhello",
    "length with fraction": CHECK_IN + b"Content-Length: 5.0\r\n\r\nhello",
    "length in two words": CHECK_IN + b"Content-Length: 5 5\r\n\r\nhello",
    "zero length and coding": CHECK_IN
    + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n"
    + LAST_CHUNK,
    "length of a get": CHECK_IN.replace(b"POST", b"GET") + b"Content-Length: 5\r\n\r\nhello",
    "chunked get": _chunked(b"5\r\nhello\r\n" + LAST_CHUNK).replace(b"POST", b"GET"),
    # Chunks.
    "chunk size 0x": _chunked(b"0x5\r\nhello\r\n" + LAST_CHUNK),
    "chunk size with plus": _chunked(b"+5\r\nhello\r\n" + LAST_CHUNK),
    "chunk size with underscore": _chunked(b"0_5\r\nhello\r\n" + LAST_CHUNK),
    "chunk size behind a space": _chunked(b" 5\r\nhello\r\n" + LAST_CHUNK),
    "chunk size before a space": _chunked(b"5 \r\nhello\r\n" + LAST_CHUNK),
    "chunk size with zeros": _chunked(b"0005\r\nhello\r\n" + LAST_CHUNK),
    "no chunk size": _chunked(b"\r\nhello\r\n" + LAST_CHUNK),
    "chunk size and line feed": _chunked(b"5\nhello\r\n" + LAST_CHUNK),
    "chunk size and carriage return": _chunked(b"5\rX\r\nhello\r\n" + LAST_CHUNK),
    "chunk data and line feed": _chunked(b"5\r\nhello\n" + LAST_CHUNK),
    "chunk data and nothing": _chunked(b"5\r\nhello" + LAST_CHUNK),
    "extension with value": _chunked(b"5;a=b\r\nhello\r\n" + LAST_CHUNK),
    "extension in quotes": _chunked(b'5;a="b"\r\nhello\r\n' + LAST_CHUNK),
    "extension and line feed": _chunked(b"5;a\nb\r\nhello\r\n" + LAST_CHUNK),
    "extension and carriage return": _chunked(b"5;a\rb\r\nhello\r\n" + LAST_CHUNK),
    "long extension": _chunked(b"5;" + b"a" * 9000 + b"\r\nhello\r\n" + LAST_CHUNK),
    "trailer": _chunked(b"0\r\nX-Trailer: a\r\n\r\n"),
    "trailer of a length": _chunked(b"0\r\nContent-Length: 5\r\n\r\n"),
    "last chunk and line feeds": _chunked(b"0\n\n"),
    "many zeros": _chunked(b"0" * 200 + b"\r\n\r\n"),
    # A request in the place of a body.
    "in the body": CHECK_IN + SMUGGLED_LENGTH + b"\r\n" + SMUGGLED,
    "in a chunk": _chunked(SMUGGLED_CHUNK),
    "in the body of a get": CHECK_IN.replace(b"POST", b"GET")
    + SMUGGLED_LENGTH
    + b"\r\n"
    + SMUGGLED,
    "behind two lengths": CHECK_IN
    + b"Content-Length: 0\r\n"
    + SMUGGLED_LENGTH
    + b"\r\n"
    + SMUGGLED,
    "behind a length and a coding": CHECK_IN
    + SMUGGLED_LENGTH
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + LAST_CHUNK
    + SMUGGLED,
    "behind a coding with space": CHECK_IN
    + b"Transfer-Encoding : chunked\r\n\r\n"
    + LAST_CHUNK
    + SMUGGLED,
    "behind a hidden length": CHECK_IN + b"X: a\r" + SMUGGLED_LENGTH + b"\r\n" + SMUGGLED,
    "behind a folded length": CHECK_IN + b"X: a\r\n " + SMUGGLED_LENGTH + b"\r\n" + SMUGGLED,
    "behind an extension": _chunked(b"0;\n" + SMUGGLED + LAST_CHUNK),
    "behind a trailer": _chunked(b"0\r\nX: a\r\n\r\n" + SMUGGLED),
    "behind chunks of HTTP/1.0": _chunked(LAST_CHUNK).replace(b"/1.1", b"/1.0") + SMUGGLED,
    "behind a host with space": CHECK_IN[:-2] + b" x\r\n\r\n" + SMUGGLED,
    # Lines.
    "bare line feeds": (CHECK_IN + b"\r\n").replace(b"\r\n", b"\n"),
    "line feed at the end": CHECK_IN + b"X-A: b\n\r\n",
    "early empty line": CHECK_IN[:-2] + b"\n\nContent-Length: 5\r\n\r\nhello",
    "bare carriage return": CHECK_IN + b"X-A: a\rContent-Length: 5\r\n\r\n",
    "leading empty line": b"\r\n" + CHECK_IN + b"\r\n",
    "folded": CHECK_IN + b"Accept: a\r\n b\r\n\r\n",
    "folded first": b"POST /api/client HTTP/1.1\r\n Accept: a\r\n" + HOST + b"\r\n",
    "folded host": b"POST /api/client HTTP/1.1\r\nHost:\r\n localhost\r\n\r\n",
    "carriage return in name": CHECK_IN + b"X\r-A: a\r\n\r\n",
    "carriage return in request line": CHECK_IN.replace(b" HTTP", b"\r HTTP") + b"\r\n",
    "nul in name": CHECK_IN + b"X\x00: a\r\n\r\n",
    "nul in request line": CHECK_IN.replace(b" HTTP", b"\x00 HTTP") + b"\r\n",
    "name with tab": CHECK_IN + b"Accept\t: a\r\n\r\n",
    "delete in value": CHECK_IN + b"User-Agent: a\x7fb\r\n\r\n",
    "two empty lines": b"\r\n\r\n" + CHECK_IN + b"\r\n",
    "no colon": CHECK_IN + b"nonsense\r\n\r\n",
    "empty name": CHECK_IN + b": value\r\n\r\n",
    "nul in value": CHECK_IN + b"User-Agent: a\x00b\r\n\r\n",
    "control in value": CHECK_IN + b"User-Agent: a\x01b\r\n\r\n",
    "high bytes in value": CHECK_IN + b"User-Agent: \xff\xfe\r\n\r\n",
    "high bytes in name": CHECK_IN + b"X-\xff: a\r\n\r\n",
    "many headers": CHECK_IN + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n",
    # The request line.
    "two spaces": CHECK_IN.replace(b" /api", b"  /api") + b"\r\n",
    "tab": CHECK_IN.replace(b" /api", b"\t/api") + b"\r\n",
    "lower case method": CHECK_IN.replace(b"POST", b"post") + b"\r\n",
    "unknown method": CHECK_IN.replace(b"POST", b"BREW") + b"\r\n",
    "absolute uri": CHECK_IN.replace(b"/api/client", b"https://localhost/api/client") + b"\r\n",
    "foreign absolute uri": CHECK_IN.replace(b"/api", b"https://evil.example/api") + b"\r\n",
    "authority": b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "query": CHECK_IN.replace(b"/api/client", b"/api/client?x=1") + b"\r\n",
    "fragment": CHECK_IN.replace(b"/api/client", b"/api/client#x") + b"\r\n",
    "trailing slash": CHECK_IN.replace(b"/api/client", b"/api/client/") + b"\r\n",
    "dots": CHECK_IN.replace(b"/api/client", b"/x/../api/client") + b"\r\n",
    "encoded": CHECK_IN.replace(b"/api/client", b"/api/%63lient") + b"\r\n",
    "double slash": CHECK_IN.replace(b"/api/client", b"//api/client") + b"\r\n",
    "nul in path": CHECK_IN.replace(b"/api/client", b"/api/client\x00") + b"\r\n",
    "no version": b"POST /api/client\r\n" + HOST + b"\r\n",
    "http 0.9": b"GET /api/client\r\n\r\n",
    "http 2": CHECK_IN.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "http 1.2": CHECK_IN.replace(b"HTTP/1.1", b"HTTP/1.2") + b"\r\n",
    "lower case version": CHECK_IN.replace(b"HTTP/1.1", b"http/1.1") + b"\r\n",
    "http2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    # Host.
    "no host": b"POST /api/client HTTP/1.1\r\n\r\n",
    "two equal hosts": CHECK_IN + HOST + b"\r\n",
    "host list": b"POST /api/client HTTP/1.1\r\nHost: localhost, evil.example\r\n\r\n",
    "host with user": b"POST /api/client HTTP/1.1\r\nHost: a@localhost\r\n\r\n",
    "host of IPv6": b"POST /api/client HTTP/1.1\r\nHost: [::1]:8443\r\n\r\n",
    "host with two ports": b"POST /api/client HTTP/1.1\r\nHost: localhost:1:2\r\n\r\n",
    "host in half a bracket": b"POST /api/client HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "host with bad port": b"POST /api/client HTTP/1.1\r\nHost: localhost:x\r\n\r\n",
    "no host in HTTP/1.0": b"POST /api/client HTTP/1.0\r\n\r\n",
    "absolute uri without host": b"POST https://localhost/api/client HTTP/1.1\r\n\r\n",
    "two hosts": CHECK_IN + b"Host: evil.example\r\n\r\n",
    "empty host": b"POST /api/client HTTP/1.1\r\nHost:\r\n\r\n",
    "bad host": b"POST /api/client HTTP/1.1\r\nHost: a b\r\n\r\n",
    "host with path": b"POST /api/client HTTP/1.1\r\nHost: a/b\r\n\r\n",
    # No HTTP.
    "nonsense": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "only an end": b"\r\n\r\n",
    "huge head": CHECK_IN + b"X-A: " + b"a" * 9000 + b"\r\n\r\n",
}


@dataclass(frozen=True)
class Rule:
    """The permitted answers, as "204", "204 400 close", or "close" for an end without an answer.

    An outcome is the status of each request in order, and whether the connection is closed then.
    `section` is of RFC 9112, or "9110, 5.5".
    """

    section: str
    outcomes: frozenset[str]


def _rules() -> dict[str, Rule]:
    found: dict[str, Rule] = {}

    def rule(section: str, outcomes: str, *names: str) -> None:
        for name in names:
            assert name not in found, name
            allowed = frozenset(outcome.strip() for outcome in outcomes.split("|"))
            found[name] = Rule(section, allowed)

    # Good requests: answered, and the connection kept.
    rule("6.3", "204", "bare", "empty body", "curl", "put", "patch", "origin", "query", "body")
    rule("9.3", "204", "keep-alive", "Keep-Alive")
    rule("9.6", "204 close", "close")
    rule("9.3", "204 close", "http 1.0", "no host in HTTP/1.0")
    rule("9110, 10.1.1", "100 204 | 204", "expect")
    rule("9110, 9.3.1", "200", "get", "length of a get", "chunked get", "in the body of a get")
    rule("9110, 15.5.6", "405", "head", "options", "delete")
    rule("9.3.2", "204 204", "two pipelined")
    rule("9.3.2", "204 200", "pipelined get")
    rule("9.3.2", "204 400 close", "pipelined nonsense")
    rule("6.3", "204", "in the body", "in a chunk")
    rule("7.1", "204", "chunked", "chunked tab", "chunk size with zeros")
    rule("7", "204", "Chunked")  # names of codings have no case
    rule("9110, 5.1", "204", "coding with underscore")  # some other header
    # Lengths: a list of equal ones may be taken for one, everything else is refused.
    rule("6.2", "204", "spaced length", "double zero")
    rule("6.3", "204 | 400 close", "two equal lengths", "length list", "equal length list")
    rule(
        *("6.3", "400 close", "two lengths", "unequal length list", "negative length"),
        *("plus length", "hex length", "unicode length", "underscored length", "empty length"),
        *("length with fraction", "length in two words", "length and nul", "behind two lengths"),
    )
    rule("6.2", "400 close | 413 close", "huge length")
    # Length and coding: may be refused, or the coding wins; the connection ends in either case.
    rule("6.1", "400 close | 204 close", "both lengths", "zero length and coding", "smuggled")
    rule("6.1", "400 close | 204 close", "behind a length and a coding")
    # Codings. HTTP/1.0 has none: faulty framing.
    rule("6.1", "400 close | 204 close", "coding in HTTP/1.0", "kept coding in HTTP/1.0")
    rule("6.1", "400 close | 204 close", "behind chunks of HTTP/1.0")
    rule("6.1", "501 close | 400 close", "gzip, chunked", "chunked in two lines")
    rule(
        *("6.3", "400 close | 501 close", "unknown coding", "gzip", "chunked, gzip", "xchunked"),
        *("chunked, identity", "identity coding", "no coding", "chunked in quotes"),
        *("vertical tab coding", "chunked twice"),
    )
    rule("7.1", "400 close", "chunked with a parameter")
    # Chunks.
    rule(
        *("7.1", "400 close", "bad chunk size", "negative chunk", "chunk without end"),
        *("chunk size 0x", "chunk size with plus", "chunk size with underscore"),
        *("chunk size behind a space", "chunk size before a space", "no chunk size"),
        *("chunk size and line feed", "chunk size and carriage return"),
        *("chunk data and line feed", "chunk data and nothing"),
        *("extension and line feed", "extension and carriage return", "behind an extension"),
    )
    rule("7.1", "400 close | 413 close", "large chunk")
    rule("7.1", "400 close | close", "many zeros")
    rule("7.1", "400 close |", "last chunk and line feeds")  # it may wait for the end of the line
    rule("7.1.1", "204", "chunk extension", "extension with value", "extension in quotes")
    rule("7.1.1", "400 close", "long extension")
    rule("7.1.2", "204", "trailer", "trailer of a length")
    rule("7.1.2", "204 200", "behind a trailer")
    # Lines.
    rule("2.2", "204 | 400 close", "bare line feeds", "line feed at the end")
    rule("2.2", "204 400 close | 400 close", "early empty line")
    rule("2.2", "400 close | 204", "bare carriage return", "folded first")
    rule("2.2", "400 close", "length behind a carriage return", "behind a hidden length")
    rule("2.2", "204", "leading empty line")
    rule("2.2", "204 | 400 close", "two empty lines")  # at least one is ignored
    rule("2.2", "400 close", "carriage return in name", "only an end", "no colon", "empty name")
    rule("5.2", "400 close | 204", "folded", "folded host", "folded coding", "folded length")
    rule("5.2", "400 close | 204 200", "behind a folded length")
    rule("5.1", "400 close", "name with space", "name with tab")
    rule("5.1", "400 close", "coding with space", "coding with tab", "behind a coding with space")
    rule("9110, 5.5", "400 close | 204", "nul in value", "control in value", "delete in value")
    rule("9110, 5.5", "204", "high bytes in value")
    rule("9110, 5.1", "400 close", "high bytes in name", "nul in name")
    rule("9110, 5.4", "204 | 431 close", "many headers")
    rule("9110, 5.4", "431 close | 400 close", "huge head")
    # The request line.
    rule("3", "400 close | 204", "two spaces", "tab")
    rule("3", "400 close | 204", "carriage return in request line")
    rule("3", "400 close", "nul in request line", "no version", "http 0.9", "nonsense")
    rule("2.3", "400 close | 505 close", "lower case version", "http 2", "http2 preface")
    rule("9110, 2.5", "204 | 204 close", "http 1.2")
    rule(
        *("9110, 9.1", "501 | 501 close | 405 | 405 close"),
        *("lower case method", "unknown method", "authority"),
    )
    rule("3.2", "400 close | 404 | 404 close", "fragment", "nul in path")
    rule("9110, 4.2.3", "404 | 404 close", "trailing slash", "double slash")
    rule("9110, 4.2.3", "204 | 404 | 404 close", "dots", "encoded")
    rule("3.2.2", "204", "absolute uri")
    rule("9110, 7.4", "404 | 404 close | 421 | 421 close | 400 close", "foreign absolute uri")
    rule("3.2.4", "200 | 204 | 404 | 404 close | 405 | 405 close", "asterisk")
    # Host.
    rule("3.2", "400 close", "no host", "absolute uri without host", "two hosts", "two equal hosts")
    rule(
        *("3.2", "400 close", "bad host", "host with path", "host list", "host with user"),
        *("host with bad port", "host with two ports", "host in half a bracket"),
        "behind a host with space",
    )
    rule("3.2", "204", "host of IPv6")
    rule("3.2", "204 | 400 close", "empty host")
    return found


RULES = _rules()

# Cases in which Tornado is stricter than the RFC, or closes without an answer: docs/security.md.
DEVIATIONS = {
    "absolute uri": "404 close",
    "chunk extension": "400 close",
    "extension with value": "400 close",
    "extension in quotes": "400 close",
    "long extension": "close",
    "trailer": "400 close",
    "trailer of a length": "400 close",
    "behind a trailer": "400 close",
    "huge head": "close",
}
