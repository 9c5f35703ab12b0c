// The chat page in Chromium: everything that a person does on it, by the roles and names of what is there.
const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const { BUILT_IN, eventually, launch, picture, scratch, serve } = require("./browser.cjs");
const { Chat, watch } = require("./chat_page.cjs");

const URL = process.env.MLXK_BASE_URL.replace(/v1$/, "");
const DESKTOP = { width: 1280, height: 800 };
const KNIFE = "knife for local models";
const NOTE = "Read note.txt and say what it is about.";
const RED = path.join(BUILT_IN, "demo-vision", "red-circle.png");
const BLUE = path.join(BUILT_IN, "demo-vision", "blue-square.jpg");
const HELLO = path.join(BUILT_IN, "demo-speech", "hello.wav");
const CITIES = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] };
const SHELL = { name: "exec_command", parameters: { type: "object", properties: { cmd: { type: "string" } } } };

async function firstPaint(chat) {
  await chat.open(URL);
  const paint = await chat.page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
  process.stdout.write(`first paint after ${Math.round(paint)} ms\n`);
  assert.ok(paint < 1000, `first paint after ${paint} ms`);
  await chat.accessible("an empty chat");
}

async function streamAndBranches(chat) {
  const { page } = chat;
  const spoken = await page.evaluateHandle(() => {
    const said = [];
    new MutationObserver(() => said.push(document.querySelector("[role=status]").textContent)).observe(
      document.querySelector("[role=status]"), { childList: true, characterData: true, subtree: true });
    return said;
  });
  await chat.model("demo");
  await chat.ask("What is mlxk?");
  await chat.answers.last().getByText(KNIFE).waitFor();
  const said = await spoken.jsonValue();
  assert.ok(said.length <= 4, `read to people who listen: ${said}`);
  assert.match(said.at(-1), new RegExp(KNIFE));
  await page.getByText(/\d+ of 2048 tokens/).waitFor();
  await page.getByText(/tokens\/s/).first().waitFor();
  assert.match(await chat.models.innerText(), /demo · loaded/);

  await chat.button("Answer again").last().click();
  await chat.ended();
  const branches = page.getByRole("group", { name: "Branches" });
  await branches.getByText("2/2").waitFor();
  await branches.getByRole("button", { name: "Earlier branch" }).click();
  await branches.getByText("1/2").waitFor();

  await chat.button("Edit message").last().click();
  const edited = page.getByRole("textbox", { name: "Edited message" });
  assert.equal(await edited.inputValue(), "What is mlxk?");
  await edited.fill("Hello!");
  await edited.press("Enter");
  await chat.ended();
  await chat.answers.last().getByText(/help you/).waitFor();
  assert.equal(chat.asked.at(-1).messages.length, 1);
  await branches.getByText("2/2").waitFor();
  await chat.accessible("a conversation");
}

async function errors(chat) {
  await chat.button("New chat").or(chat.button("Chats")).first().waitFor();
  await chat.options({ Temperature: "-7" });
  await chat.ask("Hello!");
  const alert = chat.answers.last().getByRole("alert");
  await alert.getByText(/temperature/).first().waitFor();
  await chat.options({ Temperature: "" });
}

async function begin(chat) {
  await chat.page.keyboard.press("Alt+n");
  await eventually("a new chat", async () => (await chat.answers.count()) === 0);
}

async function optionsOfRequests(chat) {
  await begin(chat);
  const sampling = { Temperature: "0", "Top p": "0.9", Seed: "7", "Most tokens of an answer": "40" };
  const form = { "Form of answers": "json_schema", "JSON schema": JSON.stringify(CITIES) };
  await chat.options({ "System prompt": "Be brief.", ...sampling, ...form });
  await chat.ask("Name a city.");
  const { messages, temperature, top_p, seed, max_tokens, response_format } = chat.asked.at(-1);
  assert.deepEqual(messages[0], { role: "system", content: "Be brief." });
  assert.deepEqual({ temperature, top_p, seed, max_tokens }, { temperature: 0, top_p: 0.9, seed: 7, max_tokens: 40 });
  assert.equal(response_format.type, "json_schema");
  await chat.answers.last().getByText(/Paris|Rome/).waitFor();
  await chat.button("Options").click();
  await chat.accessible("options");
  await chat.page.keyboard.press("Escape");
  await chat.options({ "Form of answers": "", "System prompt": "", "Most tokens of an answer": "" });
}

async function images(chat) {
  await begin(chat);
  await chat.model("demo-vision");
  for (const kind of ["drop", "paste"]) {
    await chat.give(kind, RED, "image/png");
    await chat.button("Remove red-circle.png").waitFor();
    if (kind === "drop") await chat.button("Remove red-circle.png").click();
  }
  await chat.ask("What color is it?");
  await chat.answers.last().getByText("It is red.").waitFor();

  await begin(chat);
  await chat.options({ "Begin answers about images with the table of their metadata": true });
  await chat.page.getByLabel("Images, clips and sound").setInputFiles(BLUE);
  await chat.button("Remove blue-square.jpg").waitFor();
  await chat.ask("What color is it?");
  await chat.answers.last().getByText("It is blue.").waitFor();
  const table = chat.answers.last().locator("details", { hasText: "Image Metadata" });
  await table.locator("summary").click();
  await table.getByText("blue-square").or(table.getByText("Camera")).first().waitFor();
  await chat.accessible("an answer about an image");
  await chat.options({ "Begin answers about images with the table of their metadata": false });
}

async function sound(chat) {
  await begin(chat);
  await chat.model("demo");
  await chat.page.getByLabel("Images, clips and sound").setInputFiles(HELLO);
  await chat.button("Transcribe hello.wav").click();
  await eventually("a transcript of the file", async () => /hello/i.test(await chat.prompt.inputValue()));
  await chat.button("Remove hello.wav").click();
  await chat.prompt.fill("");
  await chat.button("Record").click();
  await chat.button("Stop recording").waitFor();
  await chat.page.waitForTimeout(2200); // of the microphone, which says the same as the file
  await chat.button("Stop recording").click();
  await eventually("a transcript of the recording", async () => /hello/i.test(await chat.prompt.inputValue()));
  await chat.prompt.fill("");
}

async function reasoningAndTools(chat) {
  await begin(chat);
  await chat.model("reads-by-shell");
  await chat.options({ "Tools, as a JSON array": JSON.stringify([{ type: "function", function: SHELL }]) });
  await chat.ask(NOTE);
  const reasoning = chat.answers.last().locator("details", { hasText: "Reasoning" }).first();
  assert.equal(await reasoning.getAttribute("open"), null);
  await reasoning.locator("summary").click();
  await reasoning.getByText("The note has to be read.").waitFor();
  await chat.answers.last().getByText("Call of the tool exec_command").waitFor();
  await chat.answers.last().getByText("cat note.txt").waitFor();
  const result = chat.page.getByRole("textbox", { name: "Result of exec_command" });
  await result.fill("@@NOTE@@ It was seen at the river: a heron.");
  await chat.button("Send results").click();
  await chat.ended();
  await chat.answers.last().getByText("The note is about a heron.").waitFor();
  await chat.accessible("calls of tools");
  await picture(chat.page, "page-tools");
  await chat.options({ "Tools, as a JSON array": "" });
}

async function sideBySide(chat) {
  await begin(chat);
  await chat.model("demo");
  await chat.button("Compare").click();
  await chat.model("demo-vision", " 2");
  await chat.ask("Hello!");
  const group = chat.page.getByRole("group", { name: "Answers side by side" });
  const said = { demo: "Hello! How can I help you today?", "demo-vision": "Hello! Show me an image." };
  for (const [model, text] of Object.entries(said)) {
    await group.getByRole("article", { name: `Answer of ${model}`, exact: true }).getByText(text).waitFor();
  }
  await group.getByRole("button", { name: "Continue with this" }).click();
  await chat.button("Do not ask model 2").click();
  await chat.model("demo-vision");
  await chat.ask("Hello!");
  assert.deepEqual(chat.asked.at(-1).messages[1], { role: "assistant", content: "Hello! Show me an image." });
  await chat.accessible("answers side by side");
  await picture(chat.page, "page-side-by-side");
}

/** Ask before the page knows the models. */
async function early(browser) {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.route("**/v1/models", (route) => setTimeout(() => route.continue().catch(() => {}), 1000));
  await page.goto(URL);
  const chat = new Chat(page);
  await chat.prompt.fill("Hello!");
  await chat.prompt.press("Enter");
  await chat.answers.last().getByText(/first after/).waitFor();
  assert.ok(chat.asked[0].model, "no model was named");
  await context.close();
}

async function serverView(chat) {
  await chat.button("Server").click();
  const dialog = chat.page.getByRole("dialog", { name: "What the server does" });
  await dialog.getByText(/engine/).first().waitFor();
  await dialog.getByText("Tokens generated").waitFor();
  await dialog.getByRole("listitem").filter({ hasText: /^demo \(/ }).waitFor();
  await chat.accessible("what the server does");
  await chat.page.keyboard.press("Escape");
  await dialog.waitFor({ state: "hidden" });
}

async function keyboard(chat) {
  await begin(chat);
  await chat.page.locator("body").press("Alt+k");
  await chat.page.getByRole("dialog", { name: "Keys" }).waitFor();
  await chat.accessible("the list of keys");
  await chat.page.keyboard.press("Escape");
  await chat.prompt.focus();
  await chat.page.keyboard.type("Hello!");
  await chat.page.keyboard.press("Shift+Enter");
  await chat.page.keyboard.type("You");
  assert.equal(await chat.prompt.inputValue(), "Hello!\nYou");
  const before = chat.asked.length;
  await chat.page.keyboard.press("Enter");
  await eventually("Enter sends", () => chat.asked.length === before + 1);
  await chat.ended();
  await chat.page.keyboard.press("Alt+r");
  await eventually("Alt+R asks again", () => chat.asked.length === before + 2);
  await chat.ended();
}

async function history(chat, folder) {
  const { page } = chat;
  const side = page.getByRole("navigation", { name: "Chats" });
  const titles = () => side.getByRole("listitem").count();
  if (!(await side.isVisible())) await chat.button("Chats").click();
  const kept = await titles();
  assert.ok(kept > 4, `${kept} chats`);
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    side.getByRole("button", { name: "Export", exact: true }).first().or(page.locator("#export-all")).last().click(),
  ]);
  const file = path.join(folder, "chats.json");
  await download.saveAs(file);
  await page.reload();
  if (!(await side.isVisible())) await chat.button("Chats").click();
  await eventually("chats are kept", async () => (await titles()) === kept);
  await chat.button("Delete all").click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete", exact: true }).click();
  await eventually("all chats are gone", async () => (await titles()) === 0);
  await page.getByLabel("File of exported chats").setInputFiles(file);
  await eventually("all chats are back", async () => (await titles()) === kept);
  await side.getByRole("button", { name: NOTE, exact: true }).click();
  await chat.answers.last().getByText("The note is about a heron.").waitFor();
  await chat.accessible("the list of chats");
}

/** Choose a chat where the list lies over the conversation. */
async function fromTheList(chat, theme) {
  const side = chat.page.getByRole("navigation", { name: "Chats" });
  if (!(await side.isVisible())) await chat.button("Chats").click();
  await picture(chat.page, `page-phone-chats-${theme}`);
  await side.getByRole("button", { name: NOTE, exact: true }).click();
  await side.waitFor({ state: "hidden" });
  await chat.answers.last().getByText("The note is about a heron.").waitFor();
}

/** Look at one conversation in both themes, at the width of a desk and of a phone. */
async function looks(chat) {
  const { page } = chat;
  const dark = [];
  for (const theme of ["light", "dark"]) {
    await page.setViewportSize(DESKTOP);
    await page.emulateMedia({ colorScheme: theme === "dark" ? "light" : "dark" });
    await page.getByRole("combobox", { name: "Theme" }).selectOption(theme);
    dark.push(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
    for (const [name, size] of Object.entries({ desktop: DESKTOP, phone: { width: 390, height: 844 } })) {
      await page.setViewportSize(size);
      const [room, needed] = await page.evaluate(() => {
        const { clientWidth, scrollWidth } = document.documentElement;
        return [clientWidth, scrollWidth];
      });
      assert.equal(needed, room, `${name} scrolls sideways`);
      if (name === "phone") await fromTheList(chat, theme);
      await picture(page, `page-${name}-${theme}`);
      await chat.accessible(`${name}, ${theme}`);
    }
  }
  assert.notEqual(dark[0], dark[1]);
  await page.setViewportSize(DESKTOP);
}

async function key(browser, address) {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(await address);
  const dialog = page.getByRole("dialog", { name: "This server asks for a key" });
  await dialog.getByLabel("API key").fill("open-sesame");
  await picture(page, "page-key");
  await dialog.getByRole("button", { name: "Use this key" }).click();
  const chat = new Chat(page);
  await chat.model("demo");
  await page.reload();
  await chat.ask("What is mlxk?");
  await chat.answers.last().getByText(KNIFE).waitFor();
  assert.equal(await dialog.isVisible(), false);
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("open-sesame")), false);
  const other = await context.newPage();
  await other.goto(page.url());
  await other.getByRole("dialog", { name: "This server asks for a key" }).waitFor();
  await context.close();
}

async function main() {
  const keyed = serve(["--model", "demo"], { MLXK2_API_KEY: "open-sesame" });
  const { browser, elsewhere, close } = await launch();
  const context = await browser.newContext({ permissions: ["microphone"], viewport: DESKTOP });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  const wrong = watch(page, URL);
  const chat = new Chat(page);
  const steps = { firstPaint, streamAndBranches, errors, optionsOfRequests, images, sound, reasoningAndTools };
  Object.assign(steps, { sideBySide, serverView, keyboard, history: (each) => history(each, scratch()), looks });
  Object.assign(steps, { early: () => early(browser), key: () => key(browser, keyed) });
  for (const [name, step] of Object.entries(steps)) {
    const began = Date.now();
    await step(chat).catch(async (error) => {
      await picture(page, `page-failed-${name}`);
      wrong.push(`${name}: ${error.stack}`);
      await chat.open(URL); // so that the next ones do not stand before what this one left
    });
    process.stdout.write(`${name} ${Date.now() - began} ms\n`);
  }
  wrong.push(...chat.violations, ...elsewhere);
  assert.equal(wrong.length, 0, wrong.join("\n"));
  await close();
  process.exit(0);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
