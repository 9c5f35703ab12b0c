// The chat page as the browser's clients use it, by the roles and names of what is there.
const fs = require("node:fs");
const path = require("node:path");
const { violations } = require("./browser.cjs");

/** The page as a person uses it. */
class Chat {
  constructor(page) {
    this.page = page;
    this.prompt = page.getByRole("textbox", { name: "Message", exact: true });
    this.models = page.getByRole("combobox", { name: "Model", exact: true });
    this.answers = page.getByRole("article", { name: /^Answer of / });
    this.asked = []; // bodies of the chat requests
    this.violations = [];
    page.on("request", (request) => {
      if (request.url().endsWith("/v1/chat/completions")) this.asked.push(request.postDataJSON());
    });
  }

  async open(url) {
    await this.page.goto(url);
    await this.models.locator("option").first().waitFor({ state: "attached" });
  }

  button(name) {
    return this.page.getByRole("button", { name, exact: true });
  }

  model(name, number = "") {
    return this.page.getByRole("combobox", { name: `Model${number}`, exact: true }).selectOption(name);
  }

  /** Send a message by Enter, and wait for the end of what answers it. */
  async ask(text) {
    await this.prompt.fill(text);
    await this.prompt.press("Enter");
    await this.ended();
  }

  async ended() {
    await this.button("Send").waitFor();
    await this.page.waitForFunction(() => !document.querySelector("article[aria-busy=true]"));
  }

  /** Set options of the chat in their dialog. */
  async options(values) {
    await this.button("Options").click();
    const dialog = this.page.getByRole("dialog", { name: "Options of this chat" });
    for (const [label, value] of Object.entries(values)) {
      const field = dialog.getByLabel(label, { exact: true });
      const kind = await field.evaluate((each) => each.type);
      if (kind === "checkbox") await field.setChecked(value);
      else if (kind.startsWith("select")) await field.selectOption(value);
      else await field.fill(value);
    }
    await dialog.getByRole("button", { name: "Done" }).click();
  }

  /** Note what axe finds. */
  async accessible(where) {
    this.violations.push(...(await violations(this.page)).map((each) => `axe, ${where}: ${each}`));
  }

  /** Give the page a file as a drop or a paste does. */
  give(kind, file, type) {
    return this.page.evaluate(
      ([kind, name, type, data]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0))], name, { type }));
        const place = document.querySelector("textarea");
        const options = { bubbles: true, cancelable: true };
        if (kind === "paste") {
          place.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, ...options }));
          return;
        }
        for (const each of ["dragenter", "dragover", "drop"]) {
          place.dispatchEvent(new DragEvent(each, { dataTransfer: transfer, ...options }));
        }
      },
      [kind, path.basename(file), type, fs.readFileSync(file).toString("base64")],
    );
  }
}

/** Return a list of what goes wrong on a page from now on, and of what it asks of others than its own server. */
function watch(page, own) {
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !message.text().includes("Failed to load resource")) wrong.push(message.text());
  });
  page.on("request", (request) => {
    const address = request.url();
    if (!address.startsWith(own) && !/^(blob|data):/.test(address)) wrong.push(`asked for: ${address}`);
  });
  page.on("dialog", (dialog) => {
    wrong.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("popup", () => wrong.push("a window"));
  return wrong;
}

module.exports = { Chat, watch };
