"""Ask the server: `here EMAIL`, `history EMAIL`, or `follow`. Needs only the standard library."""

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
    """Return an open answer. Raises RuntimeError if it is an error."""
    # The stream sends something every 15 seconds: after 60 seconds of silence it is dead.
    connection = http.client.HTTPSConnection(ADDRESS, context=tls, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status >= 400:
        raise RuntimeError(f"{answer.status}: {json.load(answer).get('detail')}")
    return answer


def pages(path):
    """Yield a page and all later ones."""
    while path:
        page = json.load(ask(path))
        yield page
        path = page["next"]


def here(email):
    """Print the state of a user."""
    record = json.load(ask(f"/api/users/{quote(email, safe='@')}"))
    print(record["email"], "is", record["state"], "and was last seen", record["last_seen"])


def history(email):
    """Print the events of a user, newest first."""
    for page in pages(f"/api/users/{quote(email, safe='@')}/history"):
        for event in page["events"]:
            print(event.get("at", event["last_seen"]), event["event"])


def follow():
    """Print the number of users, then every later event exactly once."""
    while True:
        users, head, log = {}, None, None
        for page in pages("/api/users"):
            if head is None:  # of the first page: the stream repeats later events
                head, log = page["head"], page["log"]
            users.update({user["email"]: user for user in page["users"]})
        print(len(users), "users", flush=True)
        seen = {email: user["seq"] for email, user in users.items()}
        for event in events(head, log):
            if event["seq"] > seen.get(event["email"], 0):  # else the record includes it
                print(event["seq"], event["email"], event["event"], flush=True)


def events(after, log):
    """Yield the events after a sequence number; return at a gap, to take a new snapshot."""
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
