// Keeps the model up to date: takes a snapshot, then subscribes from its head. Starts again on failure.

import { committed } from "./model.js";

const PAGE = 5000; // users in a request: half a megabyte
const RECENT = 5000; // past events for the chart: a megabyte
const TIMEOUT_MS = 45000; // of a request
const SILENCE_MS = 45000; // three of the stream's keep-alive messages were missed
const RETRY_MS = [1000, 2000, 5000, 10000];

export class Feed {
  // `showConnection(state, text)` shows it; `onEvent(event)` runs after the model has the event.
  constructor(model, rate, showConnection, onEvent) {
    this.model = model;
    this.rate = rate;
    this.showConnection = showConnection;
    this.onEvent = onEvent;
    this.clockMs = 0; // the server's clock minus ours
    this.seq = 0;
    this.failures = 0;
    this.loads = 0; // snapshots taken
    this.source = null;
    this.timer = 0;
    this.aliveMs = 0; // when the stream last brought something
    setInterval(() => this.checkSilence(), SILENCE_MS / 10);
  }

  now() {
    return Date.now() + this.clockMs;
  }

  async start() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    try {
      await this.load();
      this.subscribe();
    } catch (error) {
      this.retry(error instanceof Refused ? error.message : "No connection");
    }
  }

  async load() {
    let next = `/api/users?limit=${PAGE}`;
    let first = null;
    const records = [];
    while (next) {
      const page = await this.fetchJson(next);
      first ??= page;
      records.push(...page.users);
      next = page.next;
    }
    const recent = await this.recent(first.head);
    this.model.clear();
    this.model.lateAfterMs = first.presence.late_after_s * 1000;
    this.model.offlineAfterMs = first.presence.offline_after_s * 1000;
    for (const record of records) this.model.put(record);
    this.rate.counts.clear();
    for (const event of recent) this.rate.add(event);
    const begun = recent.length ? committed(recent[0]) : this.now();
    this.rate.knownFrom = recent.length === first.head ? 0 : Math.ceil(begun / 1000);
    this.loads++;
    this.seq = first.head;
    this.log = first.log;
  }

  // Returns the newest events up to `head`, in order.
  async recent(head) {
    try {
      const page = await this.fetchJson(`/api/events?after=${Math.max(0, head - RECENT)}&limit=${RECENT}`);
      return page.events.filter((event) => event.seq <= head);
    } catch (error) {
      if (error instanceof Refused && error.status === 410) return []; // pruned
      throw error;
    }
  }

  subscribe() {
    const query = new URLSearchParams({ after: this.seq, log: this.log });
    const source = new EventSource(`/api/stream?${query}`);
    this.source = source;
    source.onopen = () => this.onAlive();
    source.onerror = () => {
      // The browser reconnects by itself, unless the server refused.
      if (source.readyState === EventSource.CLOSED) this.retry("The server refused the stream");
      else this.showLost("Connection lost");
    };
    for (const kind of ["check-in", "new", "back", "offline", "enrolled", "removed"]) {
      source.addEventListener(kind, (message) => this.onMessage(JSON.parse(message.data)));
    }
    source.addEventListener("position", () => this.onAlive());
    // A new snapshot: entries are pruned or lost, a new log has begun, or a user was erased, and the
    // entry no longer says which.
    for (const kind of ["gap", "rollback", "erased"]) source.addEventListener(kind, () => this.start());
    this.onAlive();
  }

  onMessage(event) {
    this.onAlive();
    if (event.seq <= this.seq) return;
    this.seq = event.seq;
    this.rate.add(event);
    if (this.model.apply(event)) this.onEvent(event);
  }

  onAlive() {
    this.failures = 0;
    if (this.source?.readyState !== EventSource.OPEN) return;
    this.aliveMs = Date.now();
    this.rate.knownTo = Infinity; // the stream brings what was missed
    this.showConnection("live", "Live");
  }

  // A connection can be dead without an end.
  checkSilence() {
    const open = this.source?.readyState === EventSource.OPEN;
    if (open && Date.now() - this.aliveMs > SILENCE_MS) this.retry("Connection lost");
  }

  showLost(text) {
    if (this.rate.knownTo === Infinity) this.rate.knownTo = Math.floor((this.aliveMs + this.clockMs) / 1000) - 1;
    this.showConnection("lost", `${text}, trying again`);
  }

  retry(text) {
    this.source?.close();
    const delay = RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)];
    this.showLost(text);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), delay);
  }

  async fetchJson(url) {
    const asked = Date.now();
    const response = await fetch(url, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      throw new Refused(response.status, problem.detail ?? `The server answered ${response.status}`);
    }
    const date = Date.parse(response.headers.get("Date"));
    if (date) {
      // The Date header has whole seconds: a larger difference is one of the clocks.
      const difference = date + 500 - (asked + Date.now()) / 2;
      this.clockMs = Math.abs(difference) > 2000 ? difference : 0;
    }
    return response.json();
  }
}

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}
