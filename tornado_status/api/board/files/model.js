// The records of all users, and the number of check-ins in each second. No DOM here.

import { unicodeDomain } from "./idn.js";

const CHECK_INS = new Set(["check-in", "new", "back"]);
const RANK = { offline: 0, late: 1, online: 2, never: 3 }; // the order of "sort by state"

export class Model {
  constructor() {
    this.lateAfterMs = Infinity; // until the server has said after how much silence
    this.offlineAfterMs = Infinity;
    this.users = new Map();
    this.changes = 0; // counts the changes of users and records
  }

  clear() {
    this.users.clear();
    this.changes++;
  }

  // Stores a record of /api/users, unless an event that came first is newer.
  put(record) {
    const known = this.users.get(record.email);
    if (known && known.seq > record.seq) return;
    const user = emptyUser(record.email);
    user.seq = record.seq;
    user.seenMs = time(record.last_seen);
    user.firstMs = time(record.first_seen);
    user.offline = record.state === "offline";
    user.address = address(record.client_ip, record.client_port);
    this.users.set(record.email, user);
    this.changes++;
  }

  // Applies an event of the live stream; returns whether it was newer than the record.
  apply(event) {
    let user = this.users.get(event.email);
    if (user && event.seq <= user.seq) return false;
    this.changes++;
    if (event.event === "removed") return this.users.delete(event.email);
    if (!user) {
      user = emptyUser(event.email);
      this.users.set(event.email, user);
    }
    user.seq = event.seq;
    if (event.event === "offline") {
      user.offline = true;
    } else if (isCheckIn(event)) {
      user.offline = false;
      user.seenMs = time(event.last_seen);
      user.address = address(event.client_ip, event.client_port);
      if (event.event === "new") user.firstMs = user.seenMs;
    }
    return true;
  }

  state(user, nowMs) {
    if (user.offline) return "offline";
    if (user.seenMs === null) return "never";
    return nowMs - user.seenMs > this.lateAfterMs ? "late" : "online";
  }

  counts(nowMs) {
    const counts = { all: this.users.size, online: 0, late: 0, offline: 0, never: 0 };
    for (const user of this.users.values()) counts[this.state(user, nowMs)]++;
    return counts;
  }

  // Returns the users that match every word of `search`, in order. `sort` is email, seen, state or
  // address.
  select({ filter, search, sort, descending }, nowMs) {
    const words = search.normalize("NFC").toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    for (const user of this.users.values()) {
      if (filter !== "all" && this.state(user, nowMs) !== filter) continue;
      if (!words.every((word) => matches(user, word))) continue;
      found.push(user);
    }
    const byEmail = (a, b) => (a.email < b.email ? -1 : a.email > b.email ? 1 : 0);
    const orders = {
      email: byEmail,
      seen: (a, b) => (b.seenMs ?? 0) - (a.seenMs ?? 0) || byEmail(a, b),
      state: (a, b) => RANK[this.state(a, nowMs)] - RANK[this.state(b, nowMs)] || byEmail(a, b),
      address: (a, b) => a.address.localeCompare(b.address, undefined, { numeric: true }) || byEmail(a, b),
    };
    found.sort(orders[sort]);
    return descending ? found.reverse() : found;
  }
}

function emptyUser(email) {
  const domain = unicodeDomain(email);
  return { email, domain, seq: 0, seenMs: null, firstMs: null, offline: false, address: "" };
}

function matches({ email, domain, address }, word) {
  if (email.includes(word) || address.includes(word)) return true;
  return domain !== "" && `${email.slice(0, email.lastIndexOf("@"))}@${domain}`.includes(word);
}

// The number of check-ins in each of the last `seconds`, by the time of commit.
export class Rate {
  constructor(seconds) {
    this.seconds = seconds;
    this.counts = new Map();
    this.knownFrom = 0; // seconds since the epoch; earlier and later ones have no data
    this.knownTo = Infinity;
  }

  add(event) {
    if (!isCheckIn(event)) return;
    const second = Math.floor(time(event.last_seen) / 1000);
    this.counts.set(second, (this.counts.get(second) ?? 0) + 1);
  }

  // Returns [seconds, counts] without the current second; null where nothing is known. Drops older
  // seconds.
  series(nowMs) {
    const last = Math.floor(nowMs / 1000) - 1;
    const first = last - this.seconds + 1;
    for (const second of this.counts.keys()) if (second < first) this.counts.delete(second);
    const times = [], counts = [];
    for (let second = first; second <= last; second++) {
      times.push(second);
      const known = second >= this.knownFrom && second <= this.knownTo;
      counts.push(known ? this.counts.get(second) ?? 0 : null);
    }
    return [times, counts];
  }
}

export function isCheckIn(event) {
  return CHECK_INS.has(event.event);
}

// Returns when an event was committed, in milliseconds.
export function committed(event) {
  return time(event.at ?? event.last_seen);
}

export function time(text) {
  return text ? Date.parse(text) : null;
}

export function address(ip, port) {
  if (!ip) return "";
  return ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`;
}

export function ago(ms) {
  if (ms === null) return "never";
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  const days = Math.floor(s / 86400);
  return days === 1 ? "1 day ago" : `${days} days ago`;
}
