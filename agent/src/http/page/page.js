// @ts-check
// The status page: asks this node's agent every second and shows what it says.
//
// Everything shown comes from the agent as text and stays text: elements are made by hand, never
// from markup. Elements are kept from one answer to the next, so that what is focused, selected or
// opened stays so.

/** Services shown at once; a mesh may have ten thousand. */
const MOST_SERVICES = 200;
/** Tasks in the box of a node. */
const MOST_TASKS = 60;
const SECOND = 1000;

const $ = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));
const filter = /** @type {HTMLInputElement} */ ($("filter"));

/** The last answers, and of the ones before what rates need. */
let shown = null;
let counted = { at: 0, totals: new Map() };
let heard = Date.now();
let due = false;

// --- elements ---------------------------------------------------------------------------------

/** An element with attributes and children. Strings become text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

/** Makes the children of `parent` those of `items`, in order, and keeps the ones that are there. */
function keep(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let element = old.get(key);
    if (element) old.delete(key);
    else {
      element = create(item);
      element.dataset.key = key;
    }
    update(element, item);
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
  }
  for (const gone of old.values()) gone.remove();
}

// --- words ------------------------------------------------------------------------------------

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

const rate = (value) => (value >= 100 || value === 0 ? Math.round(value) : value.toFixed(1));

/** `web.1` of `web.1.x8f3…`: the rest is Swarm's id, which is in the title. */
const brief = (name) => name.replace(/^(.+\.[^.]+)\.[a-z0-9]{25}$/, "$1");

/** How a task is: the class of its colour, and the word for it. */
function condition(task) {
  if (task.state === "down" || task.kernel === "gone") return ["bad", "down"];
  if (task.via === "unreachable") return ["bad", "unreachable"];
  if (task.state === "draining" || task.kernel === "draining") {
    return [task.health ? "bad" : "warn", task.health ? "out" : "draining"];
  }
  if (task.kernel === "absent") return ["warn", "not in the kernel yet"];
  return task.health ? ["warn", "active"] : ["ok", "active"];
}

const portName = (port) =>
  `${port.published}/${port.protocol}` +
  (port.target === port.published ? "" : ` → ${port.target}`) +
  (port.mode === "host" ? " host" : "");

/** What is wrong with a service, in a word; empty when nothing is. */
function trouble(service) {
  const withheld = service.ports.filter((port) => port.state === "withheld");
  if (withheld.length > 0) {
    return `port ${withheld[0].published} is withheld here: ${withheld[0].holder ?? "a local process has it"}`;
  }
  if (service.ports.some((port) => port.state === "pending")) return "a port is not served here yet";
  const active = service.tasks.filter((task) => condition(task)[1] === "active").length;
  if (service.tasks.length === 0) return service.ports.length > 0 ? "no tasks" : "";
  if (active === 0) return "no active task";
  const out = service.tasks.filter((task) => condition(task)[0] === "bad").length;
  return out > 0 ? `${plural(out, "task")} out` : "";
}

// --- rates ------------------------------------------------------------------------------------

/** Counters a second since the answer before, by name. */
function rates(services, now) {
  const totals = new Map();
  const result = new Map();
  const seconds = (now - counted.at) / SECOND;
  const note = (key, counters) => {
    const { connections, rx_bytes, tx_bytes } = counters;
    totals.set(key, { connections, rx_bytes, tx_bytes });
    const before = counted.totals.get(key);
    const per = (name) => (before ? Math.max(0, counters[name] - before[name]) / seconds : 0);
    result.set(key, { connections: per("connections"), rx: per("rx_bytes"), tx: per("tx_bytes") });
  };
  for (const service of services) {
    for (const port of service.ports) note(`${service.name} ${port.protocol} ${port.published}`, port.counters);
    for (const task of service.tasks) note(`${service.name} ${task.name} ${task.node}`, task.counters);
  }
  counted = { at: now, totals };
  return result;
}

// --- the filter -------------------------------------------------------------------------------

const words = () => filter.value.toLowerCase().split(/\s+/).filter(Boolean);

/** Whether every word is found somewhere in the texts. */
const matches = (wanted, texts) => {
  const text = texts.join("\n").toLowerCase();
  return wanted.every((word) => text.includes(word));
};

const textsOfTask = (task) => [task.name, task.node, ...task.addresses, ...condition(task), task.state];
const textsOfService = (service) => [service.name, ...service.ports.map(portName), trouble(service)];

/** The services with the tasks that the filter leaves of them. */
function filtered(services) {
  const wanted = words();
  if (wanted.length === 0) return services;
  return services.flatMap((service) => {
    const own = textsOfService(service);
    if (matches(wanted, own)) return [service];
    const tasks = service.tasks.filter((task) => matches(wanted, [...own, ...textsOfTask(task)]));
    return tasks.length > 0 ? [{ ...service, tasks }] : [];
  });
}

// --- parts of the page ------------------------------------------------------------------------

function showState(status) {
  setText($("node"), `on ${status.node}`);
  document.title = `${status.condition === "ok" ? "" : `${status.condition}: `}weir on ${status.node}`;
  setText($("version"), `weir ${status.version}`);
  keep(
    $("subsystems"),
    status.subsystems,
    (subsystem) => subsystem.name,
    () => make("li", {}, make("b"), make("i"), make("span"), make("span", { class: "hint" })),
    (element, { name, condition, reason, hint }) => {
      const [title, state, why, how] = element.children;
      setText(title, name);
      setText(state, condition);
      setClass(state, condition);
      setText(why, reason);
      setText(how, hint);
      how.hidden = hint === "";
    },
  );
  const problems = [...new Set([...status.problems, ...status.source_faults])];
  keep(
    $("problems"),
    problems,
    (problem) => problem,
    (problem) => make("li", { class: "bad" }, problem),
    () => {},
  );
}

function showSummary(status, services, nodes) {
  const tasks = services.flatMap((service) => service.tasks);
  const active = tasks.filter((task) => condition(task)[1] === "active").length;
  const troubled = services.filter((service) => trouble(service) !== "").length;
  const parts = [
    { ok: "works", degraded: "works, with trouble", failed: "does not work" }[status.condition],
    plural(nodes.length, "node"),
    plural(services.length, "service") + (troubled > 0 ? ` (${troubled} with trouble)` : ""),
    `${active} of ${plural(tasks.length, "task")} active`,
    status.generation === null ? "nothing in the kernel yet" : `generation ${status.generation}`,
  ];
  const element = $("summary");
  setText(element, parts.join(" · "));
  setClass(element, status.condition === "ok" && troubled > 0 ? "degraded" : status.condition);
}

function showNodes(nodes, services) {
  const byNode = new Map(nodes.map((node) => [node.name, []]));
  for (const service of services) {
    for (const task of service.tasks) byNode.get(task.node)?.push({ service: service.name, ...task });
  }
  const wanted = words();
  const shownNodes = nodes.filter(
    (node) =>
      wanted.length === 0 || byNode.get(node.name).length > 0 || matches(wanted, [node.name, node.address]),
  );
  keep(
    $("nodes"),
    shownNodes,
    (node) => node.name,
    () => make("div", { class: "node" }, make("h3"), make("p"), make("ul", { class: "tasks" }), make("p")),
    (element, node) => {
      const [title, about, list, rest] = element.children;
      setText(title, node.name);
      const place = node.here ? "this node" : node.silent ? "silent" : "";
      const where = [node.address, place, plural(node.tasks, "task")];
      setText(about, where.filter(Boolean).join(" · "));
      setClass(about, node.silent ? "bad" : "");
      const tasks = byNode.get(node.name);
      showBoxes(list, tasks.slice(0, MOST_TASKS));
      setText(rest, tasks.length > MOST_TASKS ? `and ${tasks.length - MOST_TASKS} more` : "");
    },
  );
}

function showBoxes(list, tasks) {
  keep(
    list,
    tasks,
    (task) => `${task.service} ${task.name}`,
    () => make("li", {}, make("span"), " ", make("small")),
    (element, task) => {
      const [name, state] = element.children;
      const [colour, word] = condition(task);
      setClass(element, colour);
      setText(name, brief(task.name));
      name.title = `${task.name}, a task of ${task.service}`;
      setText(state, word === "active" && !task.health ? task.addresses[0] ?? "" : word);
      element.title = task.health ?? "";
    },
  );
}

const HEADS = [
  ["task"], ["node"], ["address"], ["state"], ["weight", 1], ["active", 1], ["conn/s", 1],
  ["connections", 1], ["in/s", 1], ["out/s", 1], ["refused", 1], ["why"],
];

function showServices(services, perSecond) {
  const sorted = [...services].sort(
    (a, b) => Number(trouble(a) === "") - Number(trouble(b) === "") || a.name.localeCompare(b.name),
  );
  keep(
    $("services"),
    sorted.slice(0, MOST_SERVICES),
    (service) => service.name,
    (service) => {
      const heads = HEADS.map(([name, number]) => make("th", number ? { class: "number" } : {}, name));
      const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody"));
      const summary = make("summary", {}, make("h3"), make("span"), make("span"), make("span", { class: "rate" }));
      const element = make("details", {}, summary, make("div", { class: "scroll" }, table));
      element.open = service.tasks.length <= 20;
      return element;
    },
    (element, service) => {
      const [title, ports, state, speed] = element.firstElementChild.children;
      setText(title, service.name);
      setText(ports, service.ports.map(portName).join(", ") || "publishes nothing");
      const wrong = trouble(service);
      const active = service.tasks.filter((task) => condition(task)[1] === "active").length;
      setText(state, wrong || `${active} of ${plural(service.tasks.length, "task")} active`);
      setClass(state, wrong ? "bad" : "ok");
      let [connections, rx, tx] = [0, 0, 0];
      for (const port of service.ports) {
        const own = perSecond.get(`${service.name} ${port.protocol} ${port.published}`);
        connections += own?.connections ?? 0;
        rx += own?.rx ?? 0;
        tx += own?.tx ?? 0;
      }
      setText(speed, `${service.balance} · ${rate(connections)} conn/s · ${size(rx)}/s in · ${size(tx)}/s out`);
      if (element.open) showTasks(element.querySelector("tbody"), service, perSecond);
    },
  );
  const rest = services.length - MOST_SERVICES;
  $("more").hidden = rest <= 0;
  setText($("more"), `and ${plural(rest, "service")} more: the filter finds them`);
}

function showTasks(body, service, perSecond) {
  keep(
    body,
    service.tasks,
    (task) => `${task.name} ${task.node}`,
    () =>
      make(
        "tr",
        {},
        ...HEADS.map(([name, number]) =>
          make("td", { "data-head": name, class: number ? "number" : name === "why" ? "why" : "" }),
        ),
      ),
    (element, task) => {
      const [colour, word] = condition(task);
      const speed = perSecond.get(`${service.name} ${task.name} ${task.node}`);
      const cells = [
        brief(task.name), task.node, task.addresses.join(", "), word, task.weight, task.active,
        rate(speed?.connections ?? 0), task.counters.connections, size(speed?.rx ?? 0),
        size(speed?.tx ?? 0), task.counters.refused, task.health ?? "",
      ];
      cells.forEach((text, index) => setText(element.children[index], String(text)));
      element.children[0].title = task.name;
      setClass(element.children[3], colour);
    },
  );
}

// --- asking -----------------------------------------------------------------------------------

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10 * SECOND) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function ask() {
  const [status, services, nodes] = await Promise.all(
    ["/api/v1/status", "/api/v1/services", "/api/v1/nodes"].map(get),
  );
  const now = Date.now();
  shown = { status, services: services.services, nodes: nodes.nodes, rates: rates(services.services, now) };
  heard = now;
}

function show() {
  if (shown === null) return;
  const { status, services, nodes, rates: perSecond } = shown;
  const left = filtered(services);
  showState(status);
  showSummary(status, services, nodes);
  showNodes(nodes, left);
  showServices(left, perSecond);
}

function showLost(error) {
  const seconds = Math.round((Date.now() - heard) / SECOND);
  $("lost").hidden = false;
  setText($("lost"), `No answer from this agent for ${seconds} s (${error.message}). What is shown is old.`);
}

async function run() {
  for (;;) {
    const begun = Date.now();
    if (!document.hidden) {
      try {
        await ask();
        $("lost").hidden = true;
        show();
      } catch (error) {
        showLost(error);
      }
    }
    // A large mesh takes long to tell: a tenth of the time at most goes into asking.
    const took = Date.now() - begun;
    await new Promise((go) => setTimeout(go, Math.max(SECOND, 9 * took)));
  }
}

filter.value = new URLSearchParams(location.search).get("q") ?? "";
filter.addEventListener("input", () => {
  const address = new URL(location.href);
  if (filter.value) address.searchParams.set("q", filter.value);
  else address.searchParams.delete("q");
  history.replaceState(null, "", address);
  show();
});
document.addEventListener("toggle", () => {
  // All that are made at once say so at once.
  if (!due) requestAnimationFrame(() => { due = false; show(); });
  due = true;
}, true);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== filter) {
    event.preventDefault();
    filter.focus();
  } else if (event.key === "Escape" && document.activeElement === filter) {
    filter.value = "";
    filter.dispatchEvent(new Event("input"));
    filter.blur();
  }
});
run();
