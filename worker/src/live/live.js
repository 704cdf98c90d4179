// Asks the worker every two seconds and shows what it says. Text goes in as text, never as HTML.
"use strict";

const INTERVAL_MS = 2000;
const ANSWER_MS_MAX = 5000;
const SAMPLES_MAX = 90;
// A lane is late when its oldest record has waited for longer.
const LATE_S = 5;

const byId = (id) => document.getElementById(id);
const samples = [];
let before = null;
let silentSince = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const count = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-GB"));
const seconds = (value) => (value === null || value === undefined ? "–" : value < 10 ? `${value.toFixed(1)} s` : `${count(value)} s`);
const percent = (part, whole, digits) => (whole > 0 ? `${((100 * part) / whole).toFixed(digits)} %` : "–");

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS_MAX), cache: "no-store" });
  if (!answer.ok) throw new Error(`${path} answers ${answer.status}`);
  return answer.json();
}

const keyOf = (lane) => `${lane.topic}/${lane.partition}`;

/// What was done each second since the last answer; null where nobody knows.
function ratesOf(now) {
  const rates = new Map();
  if (!before || now.stats.done < before.stats.done) return { total: null, lanes: rates };
  const passed = (now.at - before.at) / 1000;
  for (const lane of now.lanes.lanes) {
    const then = before.done.get(keyOf(lane));
    if (then !== undefined && then !== null && lane.done !== null) {
      rates.set(keyOf(lane), Math.max(0, lane.done - then) / passed);
    }
  }
  return { total: (now.stats.done - before.stats.done) / passed, lanes: rates };
}

/// The share of batches that went to the node which owns their users: since the last answer, or ever if there were none.
function ownerHits(stats) {
  const owned = (it) => it.batches - it.batches_to_former_owner - it.batches_by_coordinator;
  const then = before && before.stats.batches < stats.batches ? before.stats : null;
  const batches = stats.batches - (then ? then.batches : 0);
  return percent(owned(stats) - (then ? owned(then) : 0), batches, 1);
}

function showTotals(now, rates) {
  const { stats, lanes } = now;
  const lag = lanes.lanes.reduce((sum, lane) => sum + (lane.lag_records ?? 0), 0);
  const oldest = Math.max(0, ...lanes.lanes.map((lane) => lane.lag_seconds ?? 0));
  const stands = lanes.lanes.filter((lane) => lane.stands).length;
  const dead = stats.illegal + stats.too_early + stats.queue_full + stats.different_payload + stats.malformed;
  const totals = [
    ["records/s", count(rates.total)],
    ["lag, records", count(lag)],
    ["lag, oldest", seconds(oldest), oldest > LATE_S ? "late" : ""],
    ["standing still", count(stands), stands ? "late" : ""],
    ["owner hits", ownerHits(stats)],
    ["batch, p99", `${(stats.batch_p99_us / 1000).toFixed(1)} ms`],
    ["dead letters", count(dead), dead ? "late" : ""],
    ["bytes in flight", `${(stats.in_flight_bytes / 1048576).toFixed(1)} MiB`],
  ];
  byId("totals").replaceChildren(...totals.map(([name, value, look]) => {
    const box = element("div", undefined, look);
    box.append(element("dt", name), element("dd", value));
    return box;
  }));
}

function showRate(total) {
  if (total !== null) samples.push(total);
  if (samples.length > SAMPLES_MAX) samples.shift();
  const top = Math.max(1, ...samples);
  const points = samples.map((value, index) => {
    const x = 600 - (samples.length - 1 - index) * (600 / (SAMPLES_MAX - 1));
    return `${x.toFixed(1)},${(84 - 78 * (value / top)).toFixed(1)}`;
  });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  byId("rate").replaceChildren(line);
  byId("rate-top").textContent = samples.length ? `at most ${count(top)}` : "";
}

function stateOf(lane, server) {
  if (!server.up && lane.lag_records !== 0) return ["waits", "bad"];
  if (lane.stands) return ["stands still", "late"];
  if ((lane.lag_seconds ?? 0) > LATE_S) return ["behind", "late"];
  return ["flows", "flows"];
}

/// The card of a server: its shards, and the lanes that lead to them.
function nodeCard(server, now, rates) {
  const card = element("article", undefined, server.up ? "node" : "node away");
  card.append(element("h3", server.server));
  const shards = server.shards.length > 6
    ? `${server.shards.length} shards, ${server.shards[0]} to ${server.shards[server.shards.length - 1]}`
    : `shard ${server.shards.join(", ")}`;
  const line = element("p");
  line.append(element("strong", server.up ? "answers" : "does not answer"),
    `; ${shards}; ${server.connections_in_use} of ${server.connections_max} connections in use`);
  card.append(line);

  const own = new Set(server.shards);
  const shardsOf = new Map(now.lanes.partitions.map((it) => [it.partition, it.shards.filter((shard) => own.has(shard))]));
  const lanes = now.lanes.lanes.filter((lane) => (shardsOf.get(lane.partition) ?? []).length > 0);
  const rows = lanes.map((lane) => {
    const row = element("tr");
    const leadsTo = shardsOf.get(lane.partition);
    const [state, look] = stateOf(lane, server);
    row.append(element("td", `${lane.topic.replace(".webhooks", "")} ${lane.partition}`),
      element("td", leadsTo.length > 3 ? `${leadsTo.length} shards` : leadsTo.join(", ")),
      element("td", count(rates.lanes.get(keyOf(lane))), "number"),
      element("td", count(lane.lag_records), "number"),
      element("td", seconds(lane.lag_seconds), "number"),
      element("td", state, look));
    return row;
  });
  const others = [...shardsOf.values()].filter((shards) => shards.length > 0).length
    - new Set(lanes.map((lane) => lane.partition)).size;
  if (rows.length > 0) {
    const table = element("table");
    const head = element("tr");
    for (const [name, look] of [["partition"], ["shard"], ["per s", "number"], ["lag", "number"], ["oldest", "number"], ["state"]]) {
      const cell = element("th", name, look);
      cell.scope = "col";
      head.append(cell);
    }
    const [thead, tbody] = [element("thead"), element("tbody")];
    thead.append(head);
    tbody.append(...rows);
    table.append(thead, tbody);
    const wide = element("div", undefined, "wide");
    wide.append(table);
    card.append(wide);
  }
  if (others > 0) card.append(element("p", `${others} of its partitions are other workers' lanes.`));
  return card;
}

function showHot(hot) {
  byId("hot-note").textContent = hot.total === 0 ? "No events yet."
    : `The busiest slot has ${hot.skew.toFixed(1)} times the mean of all 4096.`;
  byId("hot").replaceChildren(...hot.users.slice(0, 10).map((user) => {
    const row = element("tr");
    row.append(element("td", user.user, "mono"), element("td", user.slot), element("td", user.shard ?? "moving"),
      element("td", count(user.events), "number"), element("td", percent(user.events, hot.total, 2), "number"));
    return row;
  }));
}

async function look() {
  const state = byId("state");
  try {
    const [lanes, stats, hot] = await Promise.all([ask("lanes"), ask("stats"), ask("hot")]);
    const now = { at: performance.now(), lanes, stats, hot };
    const rates = ratesOf(now);
    showTotals(now, rates);
    showRate(rates.total);
    byId("nodes").replaceChildren(...lanes.servers.map((server) => nodeCard(server, now, rates)));
    showHot(hot);
    byId("group").textContent = `group ${lanes.group}, map epoch ${lanes.epoch}`;
    const away = lanes.servers.filter((server) => !server.up).length;
    state.textContent = away === 0 ? "All nodes answer" : `${away} of ${lanes.servers.length} nodes: no answer`;
    state.className = away === 0 ? "" : "bad";
    silentSince = null;
    before = { at: now.at, stats, done: new Map(lanes.lanes.map((lane) => [keyOf(lane), lane.done])) };
  } catch (error) {
    // What is shown stays, as the last that is known.
    silentSince ??= new Date().toLocaleTimeString("en-GB");
    state.textContent = `The worker has not answered since ${silentSince} (${error.message})`;
    state.className = "bad";
    before = null;
  }
  setTimeout(look, INTERVAL_MS);
}

look();
