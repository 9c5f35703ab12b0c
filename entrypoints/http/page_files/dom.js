// Builds elements. Text is always text: nothing here reads markup.

/** Returns an element with properties (`class`, `aria-…`, `data-…`, `on…` and others) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Returns a button. */
export const button = (label, onclick, properties = {}) =>
  element("button", { type: "button", onclick, ...properties }, label);

export const byId = (id) => document.getElementById(id);

/** Says something to people who listen to the page. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Waits until the next frame; a tab in the background has none, so a timer does there. */
export function nextFrame() {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 200);
    requestAnimationFrame(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}

const PIECE = 8192;

/** Appends text; a long one in pieces, at ends of lines, that the browser lays out when they come into view. */
export function appendText(parent, text) {
  if (text.length <= PIECE) {
    parent.append(text);
    return;
  }
  for (let start = 0; start < text.length; ) {
    const room = text.slice(start, start + PIECE);
    const whole = start + PIECE >= text.length;
    const end = whole ? room.length : room.lastIndexOf("\n") + 1 || room.lastIndexOf(" ") + 1 || room.length;
    parent.append(element("span", { class: "piece" }, room.slice(0, end)));
    start += end;
  }
}

/** Returns an id; `randomUUID` is missing where the page is not of this machine. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Shows a dialog, and resolves when it is closed. */
export function showDialog(dialog) {
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

/** Asks before something is lost. */
export async function confirmed(words) {
  const dialog = byId("confirm");
  byId("confirm-words").textContent = words;
  dialog.returnValue = "";
  await showDialog(dialog);
  return dialog.returnValue === "yes";
}

/** Returns what this browser was told to keep. */
export function remembered(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  localStorage.setItem(name, JSON.stringify(value));
}

/** Replaces what is in an element; a control that had the focus has it again in the new one of the same name. */
export function refill(parent, children) {
  const focused = parent.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  parent.replaceChildren(...children.filter(Boolean));
  if (focused === null) return;
  const controls = [...parent.querySelectorAll("button, select")].filter((each) => !each.disabled);
  (controls.find((each) => nameOf(each) === focused) ?? controls[0])?.focus();
}

const nameOf = (control) => control.getAttribute("aria-label") ?? control.textContent;
