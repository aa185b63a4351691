// Keeps a model complete: the snapshot, then the stream from its number on; anew where that fails.

const PAGE = 5000; // users in a request: half a megabyte
const RECENT = 5000; // events for the chart's beginning: a megabyte
const SILENCE_MS = 45000; // longer than the server's own sign of life
const RETRY_MS = [1000, 2000, 5000, 10000];

export class Feed {
  // `say(state, text)` shows the connection; `onEvent(event)` runs after the model has it.
  constructor(model, rate, say, onEvent) {
    this.model = model;
    this.rate = rate;
    this.say = say;
    this.onEvent = onEvent;
    this.clockMs = 0; // the server's clock less ours
    this.seq = 0;
    this.failures = 0;
    this.loads = 0; // snapshots taken
    this.source = null;
    this.timer = 0;
  }

  now() {
    return Date.now() + this.clockMs;
  }

  async start() {
    clearTimeout(this.timer);
    this.source?.close();
    try {
      await this.load();
      this.follow();
    } catch (error) {
      this.again(error instanceof Refused ? error.message : "No connection");
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
    for (const record of records) this.model.put(record);
    this.rate.counts.clear();
    for (const event of recent) this.rate.add(event);
    const begun = recent.length ? Date.parse(recent[0].last_seen) : this.now();
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
      if (error instanceof Refused && error.status === 410) return []; // not kept any more
      throw error;
    }
  }

  follow() {
    const query = new URLSearchParams({ after: this.seq, log: this.log });
    const source = new EventSource(`/api/stream?${query}`);
    this.source = source;
    source.onopen = () => this.alive();
    source.onerror = () => {
      // The browser tries again by itself, unless it was refused.
      if (source.readyState === EventSource.CLOSED) this.again("The stream was refused");
      else this.say("lost", "Connection lost, trying again");
    };
    for (const kind of ["check-in", "new", "back", "offline", "enrolled", "removed"]) {
      source.addEventListener(kind, (message) => this.take(JSON.parse(message.data)));
    }
    source.addEventListener("position", () => this.alive());
    source.addEventListener("gap", () => this.start()); // pruned, or another stream: all anew
    this.alive();
  }

  take(event) {
    this.alive();
    if (event.seq <= this.seq) return;
    this.seq = event.seq;
    this.rate.add(event);
    if (this.model.apply(event)) this.onEvent(event);
  }

  alive() {
    this.failures = 0;
    if (this.source?.readyState === EventSource.OPEN) this.say("live", "Live");
  }

  again(text) {
    this.source?.close();
    const delay = RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)];
    this.say("lost", `${text}, trying again`);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), delay);
  }

  async fetchJson(url) {
    const asked = Date.now();
    const response = await fetch(url, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(SILENCE_MS) });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      throw new Refused(response.status, problem.detail ?? `The server answered ${response.status}`);
    }
    const date = Date.parse(response.headers.get("Date"));
    if (date) {
      // The Date header is cut to a second: only a larger difference is one of the clocks.
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
