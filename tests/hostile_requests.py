"""A corpus of requests, plain to hostile, for whoever judges HTTP here; sent as they stand."""

from __future__ import annotations

HOST = b"Host: localhost\r\n"
CHECK_IN = b"POST /api/client HTTP/1.1\r\n" + HOST


def _chunked(body: bytes) -> bytes:
    return CHECK_IN + b"Transfer-Encoding: chunked\r\n\r\n" + body


CORPUS: dict[str, bytes] = {
    # What real clients send.
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
    # Lines.
    "bare line feeds": (CHECK_IN + b"\r\n").replace(b"\r\n", b"\n"),
    "line feed at the end": CHECK_IN + b"X-A: b\n\r\n",
    "early empty line": CHECK_IN[:-2] + b"\n\nContent-Length: 5\r\n\r\nhello",
    "bare carriage return": CHECK_IN + b"X-A: a\rContent-Length: 5\r\n\r\n",
    "leading empty line": b"\r\n" + CHECK_IN + b"\r\n",
    "folded": CHECK_IN + b"Accept: a\r\n b\r\n\r\n",
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
    "two hosts": CHECK_IN + b"Host: evil.example\r\n\r\n",
    "empty host": b"POST /api/client HTTP/1.1\r\nHost:\r\n\r\n",
    "bad host": b"POST /api/client HTTP/1.1\r\nHost: a b\r\n\r\n",
    "host with path": b"POST /api/client HTTP/1.1\r\nHost: a/b\r\n\r\n",
    # No HTTP.
    "nonsense": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "only an end": b"\r\n\r\n",
    "huge head": CHECK_IN + b"X-A: " + b"a" * 9000 + b"\r\n\r\n",
}
