// The board: binds the model and its feed to the page.

import { Chart } from "./chart.js";
import { Feed } from "./feed.js";
import { Model, Rate } from "./model.js";
import { Table } from "./table.js";
import { Timeline } from "./timeline.js";

const CHART_S = 300;
const REDRAW_MS = 250; // between two redraws, however fast events come
const READ_OUT_MS = 3000; // between two texts for screen readers, so that one can listen

const find = (selector) => document.querySelector(selector);
const view = { filter: "all", search: "", sort: "email", descending: false };

const model = new Model();
const rate = new Rate(CHART_S);
const feed = new Feed(model, rate, showConnection, onEvent);
const table = new Table(find("#scroll"), find("#table"), find("#rows"), (user) => {
  timeline.open(user.email);
  showOpenUser();
});
const chart = new Chart(find("#chart"));
const timeline = new Timeline(find("#user"), () => feed.now(), () => model.offlineAfterMs);

let drawn = -1, drawnSecond = 0, drawnLoads = 0, readOutTimer = 0;
const changes = []; // not read out yet

function showConnection(state, text) {
  const place = find("#connection");
  if (place.dataset.state === state && place.textContent === text) return;
  place.dataset.state = state;
  place.textContent = text;
}

function onEvent(event) {
  if (timeline.email === event.email) timeline.add(event);
  if (event.event === "offline" || event.event === "back" || event.event === "new") {
    changes.push(`${event.email} ${event.event}`);
    if (!readOutTimer) readOutTimer = setTimeout(readOut, READ_OUT_MS);
  }
}

// Brings the open dialog up to date; closes it if its user was removed or erased.
function showOpenUser() {
  if (timeline.email === null) return;
  const user = model.users.get(timeline.email);
  if (user) timeline.show(user, model.state(user, feed.now()));
  else timeline.close();
}

// Puts the changes where screen readers read them out.
function readOut() {
  readOutTimer = 0;
  find("#changes").textContent = changes.length > 3 ? `${changes.length} changes` : changes.join(", ");
  changes.length = 0;
}

function draw(force) {
  const now = feed.now();
  const second = Math.floor(now / 1000);
  if (!force && drawn === model.changes && drawnSecond === second) return;
  drawn = model.changes;
  if (drawnSecond !== second || drawnLoads !== feed.loads) {
    if (drawnLoads !== feed.loads && timeline.email !== null) timeline.reload();
    drawnSecond = second;
    drawnLoads = feed.loads;
    const [times, counts] = rate.series(now);
    chart.show([times, counts]);
    find("#rate-now").textContent = counts.at(-1) ?? "";
  }
  showOpenUser();
  const counts = model.counts(now);
  for (const button of document.querySelectorAll("#states button")) {
    button.firstChild.textContent = counts[button.dataset.filter].toLocaleString();
  }
  const users = model.select(view, now);
  table.show(users, (user) => model.state(user, now), now);
  const all = users.length === model.users.size;
  find("#shown").textContent = all ? "" : `${users.length.toLocaleString()} of ${model.users.size.toLocaleString()}`;
  const empty = find("#empty");
  empty.hidden = users.length > 0 || find("#connection").dataset.state === "loading";
  empty.textContent = model.users.size ? "No user matches." : "No users yet.";
}

find("#search").addEventListener("input", (event) => {
  view.search = event.target.value;
  find("#scroll").scrollTop = 0;
  draw(true);
});

find("#states").addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (!chosen) return;
  view.filter = chosen.dataset.filter;
  for (const button of find("#states").children) button.setAttribute("aria-pressed", button === chosen);
  find("#scroll").scrollTop = 0;
  draw(true);
});

find("thead").addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (!head) return;
  view.descending = view.sort === head.dataset.sort && !view.descending;
  view.sort = head.dataset.sort;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
  draw(true);
});

document.addEventListener("keydown", (event) => {
  const search = find("#search");
  if (event.key === "/" && document.activeElement !== search && !find("#user").open) {
    event.preventDefault();
    search.focus();
  } else if (event.key === "ArrowDown" && document.activeElement === search) {
    event.preventDefault();
    if (table.users.length) table.focus(0);
  }
});

setInterval(draw, REDRAW_MS);
addEventListener("online", () => feed.start());
feed.start();
