// A view of what the server does, read again while it is open.

import { figures, models, report, unload } from "./api.js";
import { byId, button, element, showDialog } from "./dom.js";

const SECONDS = 2;

/** Opens the view, until the person closes it. */
export async function showServer() {
  const closed = showDialog(byId("server"));
  let open = true;
  closed.then(() => (open = false));
  let before = null;
  while (open) {
    before = await show(before);
    await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS))]);
  }
}

async function show(before) {
  try {
    const [now, health, ready, listed] = await Promise.all([figures(), report("health"), report("readyz"), models()]);
    const moment = { time: performance.now(), tokens: now.mlxk_completion_tokens_total ?? 0 };
    byId("server-view").replaceChildren(
      stateOf(health, ready),
      table("Work", workOf(now, moment, before)),
      element("h3", {}, "Models in memory"),
      loadedList(listed.filter((each) => each.loaded)),
    );
    return moment;
  } catch (fault) {
    byId("server-view").replaceChildren(element("p", { class: "error", role: "alert" }, [fault.message, fault.hint].filter(Boolean).join(" ")));
    return null;
  }
}

function stateOf(health, ready) {
  const wrong = Object.entries(ready.checks ?? {}).filter(([, good]) => !good).map(([name]) => name);
  const words = wrong.length ? `Not ready: ${wrong.join(", ")}.` : "Takes requests.";
  return element("p", {}, `${health.service ?? "Server"} ${health.version ?? ""}: engine ${health.engine ?? "unknown"}. ${words}`);
}

function workOf(now, moment, before) {
  const computed = (now.mlxk_answer_seconds_sum ?? 0) - (now.mlxk_time_to_first_token_seconds_sum ?? 0);
  const recent = before && (moment.tokens - before.tokens) / ((moment.time - before.time) / 1000);
  return [
    ["Answers being computed", now.mlxk_answers_running ?? 0],
    ["Answers that wait", now.mlxk_answers_waiting ?? 0],
    ["Tokens/s of an answer, on average", computed > 0 ? (moment.tokens / computed).toFixed(1) : "none yet"],
    ["Tokens/s of answers that ended just now", before ? recent.toFixed(1) : "…"],
    ["Tokens generated", moment.tokens],
    ["Tokens of prompts", now.mlxk_prompt_tokens_total ?? 0],
    ["Memory of the engine", size(now.mlxk_engine_memory_bytes ?? 0)],
    ["Of it kept prompts", size(now.mlxk_prefix_cache_bytes ?? 0)],
  ];
}

function table(caption, rows) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("tbody", {}, ...rows.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, String(value))))),
  );
}

function loadedList(loaded) {
  if (!loaded.length) return element("p", { class: "quiet" }, "None. A model is loaded by the first question to it.");
  return element(
    "ul",
    {},
    ...loaded.map((each) => {
      const said = element("span", { class: "quiet", role: "status" });
      const take = button("Unload", async () => {
        try {
          await unload(each.id);
          said.textContent = " Unloaded.";
        } catch (fault) {
          said.textContent = ` ${fault.message} ${fault.hint}`;
        }
      }, { "aria-label": `Unload ${each.id}` });
      return element("li", {}, `${each.id} (${size(each.size_bytes ?? 0)}) `, take, said);
    }),
  );
}

/** Returns bytes in words. */
export function size(bytes) {
  const units = ["B", "KB", "MB", "GB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}
