// Ask the server: `here EMAIL`, `history EMAIL`, or `follow`. Needs only Node's standard library.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import https from "node:https";
import { setTimeout as sleep } from "node:timers/promises";

const address = process.env.STATUS_ADDRESS ?? "localhost:8443";
const certs = process.env.STATUS_CERTS ?? "certs";
const tls = {
  ca: readFileSync(`${certs}/ca.crt`),
  cert: readFileSync(`${certs}/operator.crt`),
  key: readFileSync(`${certs}/operator.key`),
};

/** Return an open answer. Throws if it is an error. */
async function ask(path) {
  const request = https.get(`https://${address}${path}`, tls);
  // The stream sends something every 15 seconds: after 60 seconds of silence it is dead.
  request.setTimeout(60_000, () => request.destroy(new Error("silent for a minute")));
  const [answer] = await once(request, "response");
  request.on("error", () => {}); // the reader of the answer gets it, too
  if (answer.statusCode >= 400) {
    throw new Error(`${answer.statusCode}: ${(await json(answer)).detail}`);
  }
  return answer;
}

async function json(answer) {
  return JSON.parse(Buffer.concat(await answer.toArray()).toString());
}

/** Yield a page and all later ones. */
async function* pages(path) {
  while (path) {
    const page = await json(await ask(path));
    yield page;
    path = page.next;
  }
}

async function* lines(answer) {
  let rest = "";
  for await (const text of answer.setEncoding("utf8")) {
    const parts = (rest + text).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

/** Print the state of a user. */
async function here(email) {
  const record = await json(await ask(`/api/users/${encodeURIComponent(email)}`));
  console.log(`${record.email} is ${record.state} and was last seen ${record.last_seen}`);
}

/** Print the events of a user, newest first. */
async function history(email) {
  for await (const page of pages(`/api/users/${encodeURIComponent(email)}/history`)) {
    for (const event of page.events) console.log(event.at ?? event.last_seen, event.event);
  }
}

/** Print the number of users, then every later event exactly once. */
async function follow() {
  for (;;) {
    const seen = new Map();
    let head, log;
    for await (const page of pages("/api/users")) {
      // Of the first page: the stream repeats the events after it.
      head ??= page.head;
      log ??= page.log;
      for (const user of page.users) seen.set(user.email, user.seq);
    }
    console.log(`${seen.size} users`);
    for await (const event of events(head, log)) {
      // Else the record includes it.
      if (event.seq > (seen.get(event.email) ?? 0)) {
        console.log(event.seq, event.email, event.event);
      }
    }
  }
}

/** Yield the events after a sequence number; return at a gap, to take a new snapshot. */
async function* events(after, log) {
  for (;;) {
    try {
      for await (const line of lines(await ask(`/api/stream?after=${after}&log=${log}`))) {
        if (!line.startsWith("data: ")) continue;
        const message = JSON.parse(line.slice(6));
        if (message.event === "gap") return;
        after = message.seq;
        if (message.event !== "position") yield message;
      }
    } catch (error) {
      console.error(`${error.message}; connecting again`);
    }
    await sleep(1000);
  }
}

const [command, ...given] = process.argv.slice(2);
await { here, history, follow }[command](...given);
