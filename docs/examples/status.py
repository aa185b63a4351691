"""Ask the server: `here EMAIL`, `history EMAIL`, or `follow`. Python's standard library alone."""

import http.client
import json
import os
import ssl
import sys
import time
from urllib.parse import quote

ADDRESS = os.environ.get("STATUS_ADDRESS", "localhost:8443")
CERTS = os.environ.get("STATUS_CERTS", "certs")

tls = ssl.create_default_context(cafile=f"{CERTS}/ca.crt")
tls.load_cert_chain(f"{CERTS}/operator.crt", f"{CERTS}/operator.key")


def ask(path):
    """Return an open answer; raise where it is an error."""
    # The stream says something every 15 seconds, so 60 without a word are the end of it.
    connection = http.client.HTTPSConnection(ADDRESS, context=tls, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status >= 400:
        raise RuntimeError(f"{answer.status}: {json.load(answer).get('detail')}")
    return answer


def pages(path):
    """Yield a page and all that follow it."""
    while path:
        page = json.load(ask(path))
        yield page
        path = page["next"]


def here(email):
    """Is this user here?"""
    record = json.load(ask(f"/api/users/{quote(email, safe='@')}"))
    print(record["email"], "is", record["state"], "and was last seen", record["last_seen"])


def history(email):
    """What happened to this user?"""
    for page in pages(f"/api/users/{quote(email, safe='@')}/history"):
        for event in page["events"]:
            print(event.get("at", event["last_seen"]), event["event"])


def follow():
    """Who is here, and whatever happens from then on: nothing is missed, nothing comes twice."""
    while True:
        users, head, log = {}, None, None
        for page in pages("/api/users"):
            if head is None:  # of the first page: later ones may know more, and that comes again
                head, log = page["head"], page["log"]
            users.update({user["email"]: user for user in page["users"]})
        print(len(users), "users", flush=True)
        seen = {email: user["seq"] for email, user in users.items()}
        for event in events(head, log):
            if event["seq"] > seen.get(event["email"], 0):  # else the record knew of it
                print(event["seq"], event["email"], event["event"], flush=True)


def events(after, log):
    """Yield the events behind a number; end where there is a gap: what is known is out of date."""
    while True:
        try:
            for line in ask(f"/api/stream?after={after}&log={log}"):
                if line.startswith(b"data: "):
                    message = json.loads(line[6:])
                    if message["event"] == "gap":
                        return
                    after = message["seq"]
                    if message["event"] != "position":
                        yield message
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            print(f"{error}; connecting again", file=sys.stderr)
        time.sleep(1)


if __name__ == "__main__":
    {"here": here, "history": history, "follow": follow}[sys.argv[1]](*sys.argv[2:])
