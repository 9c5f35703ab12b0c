// What surrounds the chat: the theme, the keys, and the dialogs.

import { setKey } from "./api.js";
import { byId, element, remember, remembered, showDialog } from "./dom.js";

const THEME = "mlxk-theme";

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").value = theme;
  remember(THEME, theme);
}

// On a Mac, Option and a letter write another letter.
const MAC = /Mac|iP/.test(navigator.platform);
const MODIFIER = MAC ? "Control+Shift" : "Alt";
const isShortcut = (event) =>
  MAC ? event.ctrlKey && event.shiftKey && !event.metaKey : event.altKey && !event.ctrlKey && !event.metaKey;

const SHORTCUTS = [
  ["N", "New chat", "begin"],
  ["R", "Answer again", "again"],
  ["E", "Edit your last message", "edit"],
  ["O", "Options", "options"],
  ["C", "Chats", "chats"],
  ["K", "These keys", "keys"],
];

/**
 * Makes the theme, the keys and the dialogs work.
 *
 * @param acts What the keys do, by name, and `escape`, which returns whether there was something to stop.
 */
export function startShell(acts) {
  setTheme(remembered(THEME, ""));
  byId("theme").addEventListener("change", (event) => setTheme(event.target.value));
  for (const close of document.querySelectorAll("[data-close]")) {
    close.addEventListener("click", () => close.closest("dialog").close());
  }
  byId("shortcuts-button").addEventListener("click", () => showDialog(byId("shortcuts")));
  byId("key-use").addEventListener("click", () => byId("key").close("use"));
  byId("key-field").addEventListener("keydown", (event) => event.key === "Enter" && byId("key").close("use"));
  byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
  const listed = [
    ["Enter", "Send"],
    ["Shift+Enter", "New line"],
    ["Esc", "Stop the answer, or close what is open"],
    ...SHORTCUTS.map(([letter, words]) => [`${MODIFIER}+${letter}`, words]),
  ];
  byId("shortcut-list").append(
    ...listed.flatMap(([keys, words]) => [element("dt", {}, element("kbd", {}, keys)), element("dd", {}, words)]),
  );
  const all = { ...acts, keys: () => byId("shortcuts-button").click() };
  document.addEventListener("keydown", (event) => onKey(event, all));
}

function onKey(event, acts) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (acts.escape()) event.preventDefault();
    return;
  }
  const shortcut = isShortcut(event) && SHORTCUTS.find(([letter]) => event.code === `Key${letter}`);
  if (!shortcut) return;
  event.preventDefault();
  acts[shortcut[2]]();
}

/** Asks the person for the key of the server; resolves to whether there is one now. */
export async function askForKey(error) {
  const dialog = byId("key");
  byId("key-words").textContent = [error.message, error.hint].filter(Boolean).join(" ");
  if (!dialog.open) {
    dialog.returnValue = "";
    byId("key-field").value = "";
  }
  await showDialog(dialog);
  if (dialog.returnValue !== "use") return false;
  setKey(byId("key-field").value.trim());
  return true;
}
