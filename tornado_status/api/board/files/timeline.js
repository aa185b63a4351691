// The dialog of one user: the record, the times online, and the events of the log.

import { ago, address, committed, isCheckIn } from "./model.js";

const PAGE = 200;
const LEAST_MS = 600e3; // the shortest time line, however new the user is

export class Timeline {
  // `now()` is the server's clock in milliseconds; after `offlineAfterMs()` without a check-in a user
  // is offline.
  constructor(dialog, now, offlineAfterMs) {
    this.dialog = dialog;
    this.now = now;
    this.offlineAfterMs = offlineAfterMs;
    this.email = null; // of the user in the open dialog
    this.find = (id) => dialog.querySelector(id);
    this.find("#user-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => { if (!dialog.open) this.email = null; });
    this.find("#history-more").addEventListener("click", () => this.more());
  }

  open(email) {
    this.email = email;
    this.find("#user-title").textContent = email;
    this.find("#user-facts").replaceChildren();
    this.reload();
    this.dialog.showModal();
  }

  close() {
    this.dialog.close();
    this.email = null;
  }

  // Fetches the history from its newest entry on.
  reload() {
    this.entries = [];
    this.next = `/api/users/${encodeURIComponent(this.email)}/history?limit=${PAGE}`;
    this.find("#history").replaceChildren();
    this.more();
  }

  // Adds a new event of the user in the dialog.
  add(event) {
    if (event.seq <= this.entries[0]?.seq) return; // the page of the history had it
    this.entries.unshift(event);
    this.find("#history").prepend(entry(event));
  }

  // Shows the user's record as it is now.
  show({ domain, seenMs, firstMs, address }, state) {
    const facts = [
      ["State", state],
      ["Last seen", seenMs === null ? "never" : `${moment(seenMs)}, ${ago(this.now() - seenMs)}`],
      ["First seen", seenMs === null ? "never" : firstMs === null ? "not known" : moment(firstMs)],
      ["Address", address || "none"],
    ];
    if (domain) facts.push(["Unicode", domain]);
    const list = this.find("#user-facts");
    if (list.children.length !== 2 * facts.length) {
      list.replaceChildren(...facts.flatMap(([name]) => [element("dt", name), element("dd", "")]));
    }
    facts.forEach(([, value], i) => setText(list.children[2 * i + 1], value));
    this.drawLine();
  }

  async more() {
    const { entries, next } = this;
    const button = this.find("#history-more");
    button.disabled = true;
    try {
      const response = await fetch(next);
      if (!response.ok) throw new Error(`${response.status}`);
      const page = await response.json();
      if (this.entries !== entries || this.next !== next) return;
      const newest = this.entries.at(-1)?.seq ?? Infinity;
      const older = page.events.filter((event) => event.seq < newest);
      this.entries.push(...older);
      this.find("#history").append(...older.map(entry));
      this.next = page.next;
      button.hidden = !page.next;
      this.drawLine();
    } catch {
      button.hidden = false;
    } finally {
      button.disabled = false;
    }
  }

  drawLine() {
    const line = this.find("#line");
    const end = this.now();
    const times = this.entries.map(committed);
    const start = Math.min(...times, end - LEAST_MS);
    const spans = onlineSpans(this.entries, end, this.offlineAfterMs());
    line.replaceChildren(
      ...spans.map(([from, to]) => {
        const span = document.createElement("span");
        span.style.left = `min(${(100 * (from - start)) / (end - start)}%, 100% - 3px)`;
        span.style.width = `${(100 * (to - from)) / (end - start)}%`;
        span.title = `${moment(from)} to ${moment(to)}`;
        return span;
      }),
    );
    const words = spans.map(([from, to]) => `${moment(from)} to ${moment(to)}`).join("; ");
    line.setAttribute("aria-label", words ? `Online from ${words}` : "Not online in the time shown");
    const [left, right] = this.find("#line-scale").children;
    left.textContent = moment(start);
    right.textContent = "now";
  }
}

// Returns the spans [from, to] in which the user was online. `entries` has the newest first.
export function onlineSpans(entries, nowMs, offlineAfterMs) {
  const spans = [];
  let from = null, last = null;
  for (const event of [...entries].reverse()) {
    if (isCheckIn(event)) {
      last = committed(event);
      from ??= last;
    } else if (event.event === "offline" || event.event === "removed") {
      if (from !== null) spans.push([from, last]);
      from = last = null;
    }
  }
  if (from !== null) spans.push([from, nowMs - last > offlineAfterMs ? last : nowMs]);
  return spans;
}

function entry(event) {
  const item = document.createElement("li");
  const name = element("b", event.event);
  name.dataset.event = event.event;
  item.append(name, element("time", moment(committed(event))), element("span", address(event.client_ip, event.client_port)));
  return item;
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function setText(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function moment(ms) {
  return new Date(ms).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}
