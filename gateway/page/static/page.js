// The page: it asks this gateway's own addresses, again and again, and shows what they say. Whatever comes from
// there is put in as text, never as markup.

const KEY = "cortex-key";
const FLEET_SECONDS = 2, FIGURES_SECONDS = 10, ACCOUNTS_SECONDS = 60;
const MOST_EVENTS = 100;
const AT_WORK = ["ready", "loading", "waiting", "draining", "restarting", "unloading", "failed"];

const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem(KEY) ?? "";
let admin = false;

// --- small things ------------------------------------------------------------------------------------------

/** A new element; `given` are its properties, or its attributes where it has no such property. */
function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Make the children of `parent` those of `items`, [name, value] each, and keep the nodes (and the focus) of
 *  those that stay. `make` gives a node that has a method `show(value)`. */
function fill(parent, items, make) {
  const held = document.activeElement;
  const old = new Map([...parent.children].map((node) => [node.dataset.name, node]));
  items.forEach(([name, value], i) => {
    let node = old.get(name);
    if (!node) {
      node = make(value);
      node.dataset.name = name;
    }
    old.delete(name);
    node.show(value);
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
  });
  for (const node of old.values()) node.remove();
  if (parent.contains(held)) held.focus({ preventScroll: true }); // a node that was moved has lost it
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit++;
  }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

const number = (value) => value.toLocaleString("en-GB", { maximumFractionDigits: value < 10 ? 1 : 0 });
const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`);
const whole = (fact) => fact.replaceAll(" ", "\u00a0"); // it is not broken in the middle
const percent = (share) => `${Math.round(share * 100)} %`;
const date = (unix) => new Date(unix * 1000).toISOString().slice(0, 16).replace("T", " ");

/** A bar from 0 to 1, with what it says for those who do not see it. */
function bar(label) {
  const full = el("span"), mark = el("i", { hidden: true });
  const node = el("div", { className: "bar", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100" }, full, mark);
  node.setAttribute("aria-label", label);
  node.show = (share, text, marked) => {
    const width = Math.min(Math.max(share, 0), 1) * 100;
    full.style.width = `${width}%`;
    mark.hidden = marked === undefined;
    if (marked !== undefined) mark.style.left = `calc(${Math.min(Math.max(marked, 0), 1) * 100}% - 2px)`;
    node.setAttribute("aria-valuenow", String(Math.round(width)));
    node.setAttribute("aria-valuetext", text);
  };
  return node;
}

function pill(node, text, mood) {
  say(node, text);
  node.className = `pill ${mood}`;
}

// --- asking ------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The answer to a GET, or with a body, to a POST. Throws `Refused` with the gateway's own words. */
async function ask(path, body, signal) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const message = told.error?.message ?? `the gateway answers ${answer.status}`;
  if (answer.status === 401) {
    showKeyForm(true);
    if (key) say($("said"), message);
  }
  throw new Refused(answer.status, message);
}

const read = async (path) => (await ask(path)).json();

/** Have something changed by a button, and say what was wrong with it. */
async function change(button, path, body) {
  button.disabled = true;
  say($("said"), "");
  try {
    const lines = (await (await ask(path, body)).text()).split("\n").filter(Boolean).map((line) => JSON.parse(line));
    const errors = lines.flatMap((line) => [line, ...(line.neurons ?? [])]).filter((line) => line.error);
    say($("said"), errors.map((line) => line.error.message).join("; "));
  } catch (error) {
    say($("said"), error.message);
  } finally {
    button.disabled = false;
    await look().catch(() => {});
    // A button that was disabled has lost the focus, and another one may stand in its place now.
    if (document.activeElement === document.body) button.parentElement.querySelector("button:not([hidden])")?.focus();
  }
}

/** Do that every so many seconds, while somebody looks. */
async function again(work, every) {
  for (;;) {
    await new Promise((done) => setTimeout(done, every * 1000));
    if (!document.hidden) await work().catch((error) => console.debug(error.message));
  }
}

function showKeyForm(shown) {
  $("key-form").hidden = !shown;
  $("key-button").setAttribute("aria-expanded", String(shown));
}

function useKey(text) {
  if (/[^!-~]/.test(text)) { // no header may have it
    say($("said"), "That is no API key: Expected one as `cortex keys create` shows it.");
    return;
  }
  key = text;
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  $("key").value = "";
  showKeyForm(false);
  say($("said"), "");
  refresh();
}

// --- fleet -------------------------------------------------------------------------------------------------

let fleet = { neurons: [] };

async function look() {
  let told;
  try {
    told = await read("health");
  } catch (error) {
    pill($("status"), "no answer", "bad");
    throw error;
  }
  pill($("status"), told.status, { ok: "good", impaired: "busy" }[told.status] ?? "bad");
  const note = told.catalogue?.error ? `The catalogue stays as it was: ${told.catalogue.error}` : "";
  const hidden = told.neurons ? "" : "The fleet is shown to holders of a key for all models.";
  say($("fleet-note"), note || hidden);
  $("fleet-note").hidden = !(note || hidden);
  notice(fleet, (fleet = { neurons: told.neurons ?? [] }));
  showFleet();
}

function showFleet() {
  fill($("neurons"), fleet.neurons.map((neuron) => [neuron.name, neuron]), neuronCard);
  const wanted = $("find").value.trim().toLowerCase();
  const all = fleet.neurons.flatMap((neuron) => neuron.models.map((model) => ({ neuron: neuron.name, model })));
  const shown = all.filter(({ model }) => model.id.toLowerCase().includes(wanted));
  const rank = ({ model }) => (AT_WORK.includes(model.status) ? 0 : 1);
  shown.sort((a, b) => rank(a) - rank(b) || a.model.id.localeCompare(b.model.id));
  fill($("places"), shown.map((place) => [`${place.neuron} ${place.model.id}`, place]), placeCard);
  const waits = all.filter(({ model }) => model.waiting || model.status === "loading" || model.status === "waiting");
  fill($("waits"), waits.map((place) => [`${place.neuron} ${place.model.id}`, place]), waitRow);
  $("calm").hidden = waits.length > 0;
}

function neuronCard({ name }) {
  const state = el("span"), facts = el("p", { className: "facts" }), error = el("p", { className: "error" });
  const button = (word) => el("button", { type: "button", "aria-label": `${word} ${name}` }, word);
  const devices = el("div"), drain = button("Drain"), resume = button("Resume"); // a drain can take long
  drain.onclick = () => change(drain, "admin/neurons/drain", { neuron: name });
  resume.onclick = () => change(resume, "admin/neurons/resume", { neuron: name });
  const node = el("li", { className: "card" },
    el("div", { className: "top" }, el("h3", {}, name), state), facts, error, devices, el("div", { className: "row" }, drain, resume));
  node.show = (neuron) => {
    const word = !neuron.healthy ? "lost" : neuron.draining ? "draining" : "serving";
    pill(state, word, { lost: "bad", draining: "busy", serving: "good" }[word]);
    const busy = neuron.models.reduce((sum, model) => sum + (model.running ?? 0), 0);
    say(facts, [neuron.endpoint, neuron.version, `${busy} running`].filter(Boolean).map(whole).join(" · "));
    const avoided = neuron.avoided?.length ? `avoided, for they failed: ${neuron.avoided.join(", ")}` : "";
    say(error, neuron.healthy ? avoided : neuron.reason);
    fill(devices, neuron.devices.map((device) => [device.id, device]), deviceBar);
    drain.hidden = !admin || word !== "serving";
    resume.hidden = !admin || word !== "draining";
  };
  return node;
}

function deviceBar({ id }) {
  const memory = bar(`Memory of ${id}`), facts = el("p", { className: "facts" });
  const node = el("div", {}, memory, facts);
  node.show = (device) => {
    const total = device.memory_total || 1, used = device.memory_total - device.memory_free;
    const reserved = device.memory_reserved ?? 0;
    const text = `${bytes(used)} of ${bytes(device.memory_total)} used, ${bytes(reserved)} reserved`;
    memory.show(used / total, text, reserved ? reserved / total : undefined);
    const load = device.utilization == null ? "" : `${percent(device.utilization)} busy`;
    const heat = device.temperature == null ? "" : `${Math.round(device.temperature)} °C`;
    const name = device.name && device.name !== id ? device.name : "";
    say(facts, [id, name, text, load, heat].filter(Boolean).join(" · "));
  };
  return node;
}

const mood = (status) => ({ ready: "good", failed: "bad", unloaded: "" })[status] ?? "busy";

function placeCard({ neuron, model: { id } }) {
  const state = el("span"), facts = el("p", { className: "facts" }), error = el("p", { className: "error" });
  const progress = bar(`Load of ${id}`);
  const button = (word) => el("button", { type: "button", "aria-label": `${word} ${id} on ${neuron}` }, word);
  const load = button("Load"), unload = button("Unload"), pin = button("Pin");
  let pinned = false;
  load.onclick = () => change(load, "admin/models/load", { model: id, neuron });
  unload.onclick = () => change(unload, "admin/models/unload", { model: id, neuron });
  pin.onclick = () => change(pin, "admin/models/pin", { model: id, neuron, pinned: !pinned });
  const buttons = el("div", { className: "row" }, load, unload, pin);
  const node = el("li", { className: "card" },
    el("div", { className: "top" }, el("h3", {}, id), state), facts, progress, error, buttons);
  node.show = ({ model }) => {
    pinned = model.pinned ?? false;
    pill(state, model.status, mood(model.status));
    const memory = model.bytes_measured || model.bytes_reserved;
    say(facts, [
      neuron,
      model.devices?.join(", "),
      memory ? bytes(memory) : model.bytes_parked ? `${bytes(model.bytes_parked)} parked` : "",
      model.context_length ? `${number(model.context_length)} tokens` : "",
      model.running ? `${model.running} running` : "",
      model.waiting ? `${model.waiting} waiting` : "",
      model.finished ? `${number(model.finished)} served` : "",
      model.cached_tokens ? `${percent(model.cached_tokens / model.prompt_tokens)} cached` : "",
      model.drained ? "takes nothing new" : "",
      pinned ? "pinned" : "",
    ].filter(Boolean).map(whole).join(" · "));
    progress.hidden = model.status !== "loading";
    progress.show(model.progress ?? 0, percent(model.progress ?? 0));
    say(error, model.status === "failed" ? (model.error ?? "") : "");
    const loaded = AT_WORK.includes(model.status) && model.status !== "failed";
    buttons.hidden = !admin;
    load.hidden = loaded;
    unload.hidden = !loaded;
    say(pin, pinned ? "Unpin" : "Pin");
    pin.setAttribute("aria-label", `${pin.textContent} ${id} on ${neuron}`);
  };
  return node;
}

function waitRow({ neuron, model: { id } }) {
  const text = el("span"), progress = bar(`Load of ${id}`), node = el("li", {}, text, progress);
  node.show = ({ model }) => {
    const left = model.seconds_left == null ? "" : `, ${seconds(model.seconds_left)} left`;
    const doing = model.status === "loading" ? `loading${left}` : model.status === "waiting" ? "waits for memory" : "";
    const queue = model.waiting ? `${model.waiting} waiting, ${model.running ?? 0} running` : "";
    say(text, `${id} on ${neuron}: ${[doing, queue].filter(Boolean).join("; ")}`);
    progress.hidden = model.status !== "loading";
    progress.show(model.progress ?? 0, percent(model.progress ?? 0));
  };
  return node;
}

// --- what happened -----------------------------------------------------------------------------------------

/** Say how the fleet differs from what it was at the last look. */
function notice(before, now) {
  const known = new Map(before.neurons.map((neuron) => [neuron.name, neuron]));
  for (const neuron of now.neurons) {
    const old = known.get(neuron.name);
    if (!old) continue;
    if (old.healthy !== neuron.healthy) happened(`${neuron.name} ${neuron.healthy ? "is back" : `is lost: ${neuron.reason}`}`);
    else if (old.draining !== neuron.draining) happened(`${neuron.name} ${neuron.draining ? "takes no new work" : "takes work again"}`);
    const models = new Map(old.models.map((model) => [model.id, model]));
    for (const model of neuron.models) {
      const was = models.get(model.id);
      if (!was) continue;
      const left = (model.evictions ?? 0) > (was.evictions ?? 0) ? ", for another model" : "";
      if (was.status !== model.status) happened(`${model.id} on ${neuron.name}: ${was.status} → ${model.status}${left}`);
      if (!was.waiting && model.waiting) happened(`${model.id} on ${neuron.name}: ${model.waiting} waiting`);
    }
  }
}

function happened(text) {
  const at = new Date();
  $("events").prepend(el("li", {}, el("time", { dateTime: at.toISOString() }, at.toLocaleTimeString("en-GB")), text));
  while ($("events").children.length > MOST_EVENTS) $("events").lastChild.remove();
}

// --- the last hour -----------------------------------------------------------------------------------------

async function figures() {
  let points;
  try {
    points = (await read("admin/history")).data;
    admin = true;
  } catch (error) {
    if (error.status === 401 || error.status === 403) admin = false;
    throw error;
  } finally {
    for (const node of document.querySelectorAll("[data-admin]")) node.hidden = !admin;
    if (!admin) for (const node of [$("keys"), $("usage")]) node.replaceChildren();
  }
  const last = points.length - 1;
  if (last > 1 && points[last].time - points[last - 1].time < 10) points.splice(last - 1, 1); // too short to say much
  const spans = points.slice(1).map((now, i) => spanOf(points[i], now));
  const begun = spans.length ? Math.round((points.at(-1).time - points[0].time) / 60) : 0;
  const requests = spans.reduce((sum, span) => sum + span.requests, 0);
  const errors = spans.reduce((sum, span) => sum + span.errors, 0);
  say($("hour-note"), `In ${begun === 1 ? "1 minute" : `${begun} minutes`}, by all processes of this gateway: `
    + `requests: ${number(requests)}, failed: ${number(errors)}. A request counts when it ends.`);
  const now = spans.at(-1);
  chart($("tokens-chart"), spans, (span) => [span.tokens], (value) => `${number(value)} tokens/s`, "Tokens written a second");
  chart($("first-chart"), spans, (span) => [span.slow, span.median], seconds, "Time to first token, p95 and p50");
  say($("tokens-now"), now ? `${number(now.tokens)} tokens/s` : "");
  say($("first-now"), now?.median != null ? `p50 ${seconds(now.median)} · p95 ${seconds(now.slow)}` : "nobody asks");
}

/** What happened between two counts. */
function spanOf(before, now) {
  const took = Math.max(now.time - before.time, 0.001);
  const bounds = Object.keys(now.first_tokens).map((bound) => [bound === "+Inf" ? Infinity : Number(bound), bound]);
  const counts = bounds.sort((a, b) => a[0] - b[0])
    .map(([upper, bound]) => [upper, now.first_tokens[bound] - (before.first_tokens[bound] ?? 0)]);
  return {
    from: before.time,
    to: now.time,
    requests: now.requests - before.requests,
    errors: now.errors - before.errors,
    tokens: (now.completion_tokens - before.completion_tokens) / took,
    median: quantile(counts, 0.5),
    slow: quantile(counts, 0.95),
  };
}

/** The value that so many of all are below, from a histogram: [upper bound, how many are at most that]. */
function quantile(counts, share) {
  const all = counts.length ? counts.at(-1)[1] : 0;
  if (!all) return null;
  let lower = 0, below = 0;
  for (const [upper, count] of counts) {
    if (count >= share * all) {
      return upper === Infinity ? lower : lower + (upper - lower) * (share * all - below) / (count - below);
    }
    [lower, below] = [upper, count];
  }
  return lower;
}

/** Columns over the last hour; the first of several values of a span is the faint one behind. */
function chart(svg, spans, valuesOf, words, label) {
  const peak = Math.max(0, ...spans.flatMap((span) => valuesOf(span).map((value) => value ?? 0)));
  const end = spans.at(-1)?.to ?? 0;
  svg.setAttribute("aria-label", peak ? `${label}; at most ${words(peak)}` : `${label}; none yet`);
  svg.replaceChildren(...spans.flatMap((span) => valuesOf(span).map((value, i, all) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = peak ? ((value ?? 0) / peak) * 95 : 0;
    const x = 3600 - (end - span.from);
    const shape = { x, y: 100 - height, width: Math.max(span.to - span.from - 8, 12), height };
    for (const [name, each] of Object.entries(shape)) rect.setAttribute(name, String(each));
    if (i < all.length - 1) rect.setAttribute("class", "faint");
    return rect;
  })));
}

// --- keys and usage ----------------------------------------------------------------------------------------

async function accounts() {
  if (!admin) return;
  const [keys, usage] = await Promise.all([read("admin/keys"), read("admin/usage?days=30")]);
  if (!admin) return; // no longer
  const names = new Map(keys.data.map((each) => [each.id, each.name]));
  table($("keys"), ["Key", "Name", "Made", "State", "Models", "Limits"], keys.data.map((each) => [
    each.id, each.name, date(each.created), stateOf(each),
    (each.terms.models?.join(" ") || "all") + (each.terms.admin ? ", admin" : ""), limitsOf(each.terms),
  ]), "No key was made. `cortex keys create NAME` makes one.");
  table($("usage"), ["Key", "Model", "Requests", "Prompt tokens", "Of these cached", "Answer tokens", "Last"],
    usage.data.map((row) => [
      names.get(row.key) ?? row.key, row.model, row.requests, row.prompt_tokens, row.cached_tokens,
      row.completion_tokens, row.day,
    ]), `Nothing was used with a key since ${usage.since}.`);
}

function stateOf({ revoked, expires }) {
  if (revoked != null) return `revoked ${date(revoked)}`;
  if (expires == null) return "holds";
  return `${expires * 1000 <= Date.now() ? "expired" : "holds until"} ${date(expires)}`;
}

function limitsOf(terms) {
  const limits = ["requests", "tokens"].flatMap((what) => ["minute", "day"].map((per) => [terms[`${what}_per_${per}`], what, per]));
  return limits.filter(([limit]) => limit != null).map(([limit, what, per]) => `${number(limit)} ${what}/${per}`).join(", ") || "none";
}

function table(node, columns, rows, instead) {
  const cell = (value) => (typeof value === "number"
    ? el("td", { className: "number" }, number(value)) : el("td", {}, value));
  const head = el("thead", {}, el("tr", {}, ...columns.map((column) => el("th", { scope: "col" }, column))));
  const body = rows.map((row) => el("tr", {}, ...row.map(cell)));
  node.replaceChildren(...(rows.length ? [head, el("tbody", {}, ...body)] : [el("caption", { className: "note" }, instead)]));
}

// --- chat --------------------------------------------------------------------------------------------------

let messages = [], asking = null;

async function listModels() {
  const chosen = $("chat-model").value;
  const talking = (await read("v1/models")).data.filter((model) => model.capabilities.includes("chat"));
  const ids = talking.map((model) => model.id);
  const shown = [...$("chat-model").options].map((option) => option.value);
  if (ids.join("\n") === shown.join("\n")) return;
  $("chat-model").replaceChildren(...ids.map((id) => el("option", { value: id, selected: id === chosen }, id)));
}

function turn(role, text) {
  const node = el("article", { className: `turn ${role}` }, el("h3", {}, role));
  const said = el("p", { className: "said" }, text);
  node.append(said);
  $("turns").append(node);
  $("turns").scrollTop = $("turns").scrollHeight;
  return node;
}

/** What is asked next: an answer of the tools that the model called, or what the user says. */
function next(text) {
  const calls = messages.at(-1)?.tool_calls ?? [];
  if (!calls.length) return [{ role: "user", content: text }];
  return calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: text }));
}

async function send() {
  const text = $("text").value.trim(), model = $("chat-model").value;
  if (!text || !model || asking) return;
  const body = { model, stream: true, stream_options: { include_usage: true } };
  try {
    if ($("tools").value.trim()) body.tools = JSON.parse($("tools").value);
  } catch (error) {
    say($("said"), `Tools: ${error.message}`);
    return;
  }
  if ($("thinking").value) body.chat_template_kwargs = { enable_thinking: $("thinking").value === "true" };
  say($("said"), "");
  const asked = next(text);
  turn(asked[0].role, text);
  $("text").value = "";
  body.messages = [...messages, ...asked];
  asking = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  const answer = new Answer();
  try {
    await answer.take(await ask("v1/chat/completions", body, asking.signal));
    messages = [...body.messages, answer.message];
  } catch (error) {
    const stopped = error.name === "AbortError";
    answer.end(stopped ? "stopped" : error.message, !stopped);
    if (!answer.node.isConnected) return; // a new conversation has begun
    if (stopped && answer.content) messages = [...body.messages, { role: "assistant", content: answer.content }];
    else $("text").value ||= text;
  } finally {
    asking = null;
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

/** An answer of the model, as it comes. */
class Answer {
  constructor() {
    this.content = "";
    this.calls = [];
    this.begun = performance.now();
    this.first = this.last = this.usage = null;
    this.node = turn("assistant", "");
    this.said = this.node.querySelector(".said");
    this.thought = el("div", { className: "thought" });
    this.details = el("details", { open: true, hidden: true }, el("summary", {}, "Reasoning"), this.thought);
    this.foot = el("p", { className: "facts" }, "waiting");
    this.said.before(this.details);
    this.node.append(this.foot);
  }

  get message() {
    const calls = this.calls.length ? { tool_calls: this.calls } : {};
    return { role: "assistant", content: this.content, ...calls };
  }

  async take(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", whole = false;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      const follow = $("turns").scrollHeight - $("turns").scrollTop - $("turns").clientHeight < 40;
      for (const line of lines) {
        if (line === "data: [DONE]") whole = true;
        else if (line.startsWith("data: ")) this.event(JSON.parse(line.slice(6)));
        else if (line.startsWith(": ") && this.first === null && line !== ": keep-alive") say(this.foot, line.slice(2));
      }
      if (follow) $("turns").scrollTop = $("turns").scrollHeight;
    }
    if (!whole) throw new Error("the answer broke off");
    this.end(this.figures());
  }

  event(event) {
    if (event.error) throw new Error(event.error.message);
    this.usage = event.usage ?? this.usage;
    const delta = event.choices?.[0]?.delta;
    if (!delta) return;
    if (delta.reasoning || delta.content || delta.tool_calls) {
      this.last = performance.now();
      if (this.first === null) {
        this.first = this.last;
        say(this.foot, "writing");
      }
    }
    if (delta.reasoning) {
      this.details.hidden = false;
      this.write(this.thought, delta.reasoning);
    }
    if (delta.content) {
      this.content += delta.content;
      this.write(this.said, delta.content);
    }
    for (const piece of delta.tool_calls ?? []) this.call(piece);
  }

  write(node, text) {
    if (node.firstChild) node.firstChild.appendData(text);
    else node.append(text);
  }

  call(piece) {
    let call = this.calls[piece.index];
    if (!call) {
      call = this.calls[piece.index] = { id: piece.id, type: "function", function: { name: piece.function.name, arguments: "" } };
      this.foot.before(el("pre", { "aria-label": "Call of a tool" }, `${piece.function.name} `));
    }
    call.function.arguments += piece.function.arguments ?? "";
    this.node.querySelectorAll("pre")[piece.index].firstChild.appendData(piece.function.arguments ?? "");
  }

  /** What it came to. */
  figures() {
    if (this.first === null || !this.usage) return "nothing was said";
    const tokens = this.usage.completion_tokens, took = (this.last - this.first) / 1000;
    const rate = tokens > 1 && took > 0 ? [`${number((tokens - 1) / took)} tokens/s`] : [];
    const cached = this.usage.prompt_tokens_details?.cached_tokens;
    const prompt = `${number(this.usage.prompt_tokens)} read${cached ? ` (${number(cached)} cached)` : ""}`;
    return [prompt, `${number(tokens)} written`, `first after ${seconds((this.first - this.begun) / 1000)}`, ...rate].join(" · ");
  }

  end(text, wrong = false) {
    say(this.foot, text);
    this.foot.className = wrong ? "error" : "facts";
  }
}

// --- the beginning -----------------------------------------------------------------------------------------

const refresh = async () => {
  await figures().catch(() => {});
  for (const work of [look, accounts, listModels]) await work().catch(() => {});
};

$("key-button").onclick = () => {
  showKeyForm($("key-form").hidden);
  if (!$("key-form").hidden) $("key").focus();
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
};
$("key-forget").onclick = () => useKey("");
$("find").oninput = showFleet;
$("chat-form").onsubmit = (event) => {
  event.preventDefault();
  send();
};
$("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
};
$("stop").onclick = () => asking?.abort();
$("clear").onclick = () => {
  asking?.abort();
  messages = [];
  $("turns").replaceChildren();
};

await refresh();
again(look, FLEET_SECONDS);
again(figures, FIGURES_SECONDS);
again(listModels, FIGURES_SECONDS);
again(accounts, ACCOUNTS_SECONDS);
