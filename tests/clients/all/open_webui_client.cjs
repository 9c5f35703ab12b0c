// Open WebUI in front of the server, used in Chromium: sign up, choose a model, chat, an image, a transcription.
const assert = require("node:assert");
const fs = require("node:fs");
const net = require("node:net");
const path = require("node:path");
const { BUILT_IN, eventually, launch, notRun, onPath, picture, scratch, start } = require("../browser.cjs");

const STARTS_WITHIN = 120; // seconds; it imports for half of that on two cores
const BASE = process.env.MLXK_BASE_URL;
const SETTINGS = {
  OPENAI_API_BASE_URL: BASE,
  OPENAI_API_KEY: "any",
  ENABLE_OLLAMA_API: "False",
  // Its own tools are 11,000 tokens, and the window of the built-in model is 2048.
  DEFAULT_MODEL_PARAMS: JSON.stringify({ function_calling: "legacy" }),
  AUDIO_STT_ENGINE: "openai",
  AUDIO_STT_OPENAI_API_BASE_URL: BASE,
  AUDIO_STT_OPENAI_API_KEY: "any",
  AUDIO_STT_MODEL: "demo-speech",
  // Embeddings by address, so that it loads no model of its own.
  RAG_EMBEDDING_ENGINE: "openai",
  RAG_OPENAI_API_BASE_URL: BASE,
  WEBUI_SECRET_KEY: "0123456789abcdef0123456789abcdef",
  OFFLINE_MODE: "True",
  HF_HUB_OFFLINE: "1",
  ENABLE_VERSION_UPDATE_CHECK: "False",
  ANONYMIZED_TELEMETRY: "False",
  DO_NOT_TRACK: "true",
  SCARF_NO_ANALYTICS: "true",
};

/** Return a port that nobody uses. */
function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  return new Promise((done) => server.on("listening", () => server.close(done.bind(null, server.address().port))));
}

async function signUp(page, url) {
  await page.goto(url);
  await page.getByRole("button", { name: "Get started" }).click();
  await page.getByPlaceholder("Enter Your Full Name").fill("Ada");
  await page.getByPlaceholder("Enter Your Email").fill("ada@example.com");
  await page.getByPlaceholder("Enter Your Password").fill("lovelace-1843");
  await page.getByRole("button", { name: "Create Admin Account" }).click();
  await page.getByRole("button", { name: "Okay, Let's Go!" }).click();
}

async function choose(page, model) {
  await page.locator("#model-selector-model-button").click();
  await page.getByLabel(`Select ${model} model`, { exact: true }).click();
}

async function ask(page, text) {
  await page.locator("#chat-input").click();
  await page.keyboard.type(text);
  await page.keyboard.press("Enter");
}

async function main() {
  const program = path.join(process.env.CLIENTS_BIN, "open-webui");
  if (!fs.existsSync(program)) notRun("open-webui is not installed");
  if (onPath("ffmpeg") === null) notRun("a browser's recordings need ffmpeg");
  const { browser, elsewhere, close } = await launch();
  const data = scratch();
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const words = ["serve", "--host", "127.0.0.1", "--port", `${port}`];
  const served = start(program, words, { ...SETTINGS, DATA_DIR: data, HOME: data });
  const answers = () => fetch(`${url}/health`).then((answer) => answer.ok).catch(() => served.child.exitCode !== null);
  await eventually(`Open WebUI answers: ${served.said()}`, answers, STARTS_WITHIN);
  assert.equal(served.child.exitCode, null, served.said());

  const context = await browser.newContext({ permissions: ["microphone"] });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  await signUp(page, url);

  await choose(page, "demo");
  await ask(page, "What is mlxk?");
  await page.getByText("knife for local models").first().waitFor();

  await page.getByLabel("New Chat").first().click();
  await choose(page, "demo-vision");
  const picked = path.join(BUILT_IN, "demo-vision", "red-circle.png");
  await page.locator("input[type=file]").first().setInputFiles(picked);
  await page.getByRole("button", { name: "Show image preview" }).waitFor();
  await ask(page, "What color is it?");
  await page.getByText("It is red.").first().waitFor();
  await picture(page, "open-webui");

  await page.locator("#voice-input-button").click();
  await page.locator("#confirm-recording-button").waitFor();
  await page.waitForTimeout(2500); // what is recorded
  await page.locator("#confirm-recording-button").click();
  await page.locator("#chat-input").getByText(/hello/i).waitFor();

  assert.deepEqual(elsewhere, []);
  await close();
  process.exit(0);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
