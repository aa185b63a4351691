// The table of users. The document has only the rows in view, however many users there are.

import { ago } from "./model.js";

const MARGIN = 8; // rows kept above and below the view

export class Table {
  // `onOpen(user)` runs when a row is chosen.
  constructor(scroll, table, body, onOpen) {
    this.scroll = scroll;
    this.table = table;
    this.body = body;
    this.onOpen = onOpen;
    this.users = [];
    this.rows = [];
    this.active = null; // the e-mail of the row with the keyboard focus
    this.above = spacer();
    this.below = spacer();
    body.append(this.above, this.below);
    scroll.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(scroll);
    body.addEventListener("click", (event) => this.open(event.target.closest("tr[data-email]")));
    body.addEventListener("keydown", (event) => this.key(event));
    body.addEventListener("focusin", (event) => {
      const row = event.target.closest("tr[data-email]");
      if (row) this.active = row.dataset.email;
    });
  }

  // Shows `users` in their order; `state(user)` and `nowMs` give the state and the age of each.
  show(users, state, nowMs) {
    this.users = users;
    this.state = state;
    this.nowMs = nowMs;
    this.table.setAttribute("aria-rowcount", users.length + 1);
    this.draw();
  }

  rowHeight() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue("--row"));
  }

  draw() {
    if (!this.state) return;
    const height = this.rowHeight();
    const top = Math.max(0, this.scroll.scrollTop - this.table.tHead.offsetHeight);
    const first = Math.max(0, Math.min(Math.floor(top / height) - MARGIN, this.users.length - 1));
    const count = Math.ceil(this.scroll.clientHeight / height) + 2 * MARGIN;
    const shown = this.users.slice(first, first + count);
    // A row keeps its user while both are in view, so that focus and hover stay.
    const free = new Map(this.rows.map((row) => [row.dataset.email, row]));
    const kept = shown.map((user) => {
      const row = free.get(user.email);
      free.delete(user.email);
      return row;
    });
    const spare = [...free.values()];
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    this.rows = shown.map((_, i) => kept[i] ?? spare.pop() ?? emptyRow());
    for (const row of spare) row.remove();
    this.rows.forEach((row, i) => {
      this.fill(row, shown[i], first + i);
      const there = this.body.rows[i + 1]; // after the spacer
      if (there !== row) this.body.insertBefore(row, there);
    });
    this.above.firstChild.style.height = `${first * height}px`;
    this.below.firstChild.style.height = `${Math.max(0, this.users.length - first - shown.length) * height}px`;
    const active = this.rows.find((row) => row.dataset.email === this.active) ?? this.rows[0];
    for (const row of this.rows) row.tabIndex = row === active ? 0 : -1;
    if (focused && document.activeElement !== focused) {
      (focused.isConnected ? focused : active)?.focus({ preventScroll: true }); // moving a row loses the focus
    }
  }

  fill(row, user, index) {
    const [state, email, seen, address] = row.cells;
    const current = this.state(user);
    if (row.dataset.email !== user.email) {
      row.dataset.email = user.email;
      email.replaceChildren(user.email);
      email.title = user.email;
      if (user.domain) {
        // Beside the canonical spelling, never in its place: other letters may look the same.
        const domain = document.createElement("bdi");
        domain.textContent = user.domain;
        email.append(domain);
        email.title += ` (${user.domain})`;
      }
    }
    if (row.dataset.state !== current) {
      row.dataset.state = current;
      state.firstChild.textContent = current;
    }
    setText(seen, user.seenMs === null ? "never" : ago(this.nowMs - user.seenMs));
    setText(address, user.address);
    row.setAttribute("aria-rowindex", index + 2);
  }

  open(row) {
    const user = row && this.users.find((user) => user.email === row.dataset.email);
    if (user) this.onOpen(user);
  }

  key(event) {
    const row = event.target.closest("tr[data-email]");
    if (!row) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.open(row);
      return;
    }
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.rowHeight()) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const from = this.users.findIndex((user) => user.email === row.dataset.email);
    this.focus(Math.max(0, Math.min(this.users.length - 1, from + step)));
  }

  focus(index) {
    const height = this.rowHeight();
    const head = this.table.tHead.offsetHeight;
    const top = index * height;
    const view = this.scroll.clientHeight - head;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top + height > this.scroll.scrollTop + view) this.scroll.scrollTop = top + height - view;
    this.active = this.users[index].email;
    this.draw();
    this.rows.find((row) => row.dataset.email === this.active)?.focus({ preventScroll: true });
  }
}

function emptyRow() {
  const row = document.createElement("tr");
  for (let i = 0; i < 4; i++) row.insertCell();
  const badge = document.createElement("span");
  badge.className = "state";
  row.cells[0].append(badge);
  return row;
}

function spacer() {
  const row = document.createElement("tr");
  row.className = "spacer";
  row.setAttribute("aria-hidden", "true");
  row.insertCell();
  return row;
}

function setText(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}
