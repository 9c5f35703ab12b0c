// The server's API. Addresses are relative, so that the page also works below a path of a proxy.

import { nextFrame } from "./dom.js";

const KEY = "mlxk-key";

/** What went wrong, in the server's words, and what to do. */
export class ServerError extends Error {
  constructor(message, { hint = "", status = 0, code = "", retryable = false, requestId = "", problems = [] } = {}) {
    super(message);
    Object.assign(this, { hint, status, code, retryable, requestId, problems });
  }
}

let askForKey = async () => false;

/** Sets what asks the person for a key; it resolves to whether there is one now. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers(given) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...given, Authorization: `Bearer ${key}` } : given;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers ?? {}), cache: "no-store" });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new ServerError("The server does not answer.", {
      hint: "See in its terminal, or with 'mlxk ps', whether it still runs; 'mlxk serve' starts it.",
      retryable: true,
    });
  }
  if (response.status === 401 && (await askForKey(await errorOf(response)))) return ask(path, options);
  return response;
}

async function errorOf(response) {
  const text = await response.text();
  try {
    return serverError(JSON.parse(text), response.status);
  } catch {
    return new ServerError(text.slice(0, 500) || `The server answered with status ${response.status}.`, {
      status: response.status,
    });
  }
}

function serverError(body, status) {
  const error = body.error ?? {};
  return new ServerError(error.message ?? "The server failed without saying why.", {
    hint: error.hint ?? "",
    status,
    code: error.code ?? "",
    retryable: Boolean(error.retryable),
    requestId: body.request_id ?? "",
    problems: (error.detail?.problems ?? []).map((each) => `${each.param}: ${each.message}`),
  });
}

async function answered(path, options) {
  const response = await ask(path, options);
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Returns the models, those in memory first. */
export const models = async () => (await (await answered("v1/models")).json()).data;

/** Returns a JSON document, also one that says that the server is not well. */
export const report = async (path) => (await ask(path)).json();

/** Returns the figures of the server, by name and, for those with labels, summed. */
export async function figures() {
  const found = {};
  for (const line of (await (await answered("metrics")).text()).split("\n")) {
    const [, name, value] = /^([a-z_]+)(?:\{[^}]*\})? ([0-9.e+-]+)$/.exec(line) ?? [];
    if (name) found[name] = (found[name] ?? 0) + Number(value);
  }
  return found;
}

/** Takes a model out of memory. */
export const unload = (model) => answered("v1/unload", json({ model }));

/** Returns what is said in a recording. */
export async function transcribe(blob, model) {
  const form = new FormData();
  form.append("file", blob, "recording.wav");
  if (model) form.append("model", model);
  return (await (await answered("v1/audio/transcriptions", { method: "POST", body: form })).json()).text;
}

/** Yields a spoken text, as samples of 16 bits, 24,000 a second. */
export async function* speech(input, model, signal) {
  const response = await answered("v1/audio/speech", { ...json({ model, input, response_format: "pcm" }), signal });
  const reader = response.body.getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    yield value;
  }
}

const json = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

/** Milliseconds of work on arrived data between two frames. */
const BUDGET = 8;

/**
 * Streams an answer.
 *
 * @param body The chat request.
 * @param signal Aborts it.
 * @param on Called with `headers(Headers)`, `delta(delta)`, `finish(reason)` and `usage(usage)`.
 */
export async function chat(body, signal, on) {
  const response = await answered("v1/chat/completions", {
    ...json({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  on.headers?.(response.headers);
  let ended = false;
  let began = performance.now();
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      continue;
    }
    const event = JSON.parse(data);
    if (event.error) throw serverError(event, 200);
    const choice = event.choices?.[0];
    if (choice?.delta) on.delta(choice.delta);
    if (choice?.finish_reason) on.finish(choice.finish_reason);
    if (event.usage) on.usage(event.usage);
    if (performance.now() - began > BUDGET) {
      await nextFrame();
      began = performance.now();
    }
  }
  if (!ended) {
    throw new ServerError("The answer broke off: the connection ended before it was complete.", {
      hint: "The server may have stopped or restarted; ask again.",
      retryable: true,
    });
  }
}

/** Yields the data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
  }
}
