// What the clients with a browser share: Chromium, a record of all that it asks for, servers of their own, pictures.
const assert = require("node:assert");
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const readline = require("node:readline");

const ROOT = path.join(__dirname, "..", "..");
const BUILT_IN = path.join(ROOT, "adapters", "builtin", "models");
const PICTURES = path.join(ROOT, "build", "pictures");
const NOT_RUN = 77; // As in coding_agents.py.
/** What Chromium asks by itself, and Playwright does not turn off; what a page asks for is seen otherwise, too. */
const OWN_REQUEST = /^(CONNECT [a-z0-9.-]+\.(google|googleapis|gvt1)\.com:443 |POST http:\/\/update\.googleapis\.com\/service\/update2\/)/;
const PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
const APPLICATIONS = ["Chromium", "Google Chrome"].map((each) => `/Applications/${each}.app/Contents/MacOS/${each}`);

/** Return the path of a program, or null. */
function onPath(name) {
  const folders = (process.env.PATH ?? "").split(path.delimiter);
  return folders.map((folder) => path.join(folder, name)).find((each) => fs.existsSync(each)) ?? null;
}

/** Say what is missing on this machine, and end. */
function notRun(reason) {
  fs.writeSync(1, `${reason}\n`);
  process.exit(NOT_RUN);
}

/** Return the path of Chromium: the variable CHROMIUM, or one that is installed. */
function chromium() {
  const given = process.env.CHROMIUM;
  if (given) {
    assert.ok(fs.existsSync(given) || onPath(given), `CHROMIUM: there is no ${given}`);
    return given.includes("/") ? given : onPath(given);
  }
  const found = PROGRAMS.map(onPath).find(Boolean) ?? APPLICATIONS.find((each) => fs.existsSync(each));
  return found ?? notRun("THERE IS NO CHROMIUM: apt-get install chromium, or name one in the variable CHROMIUM");
}

/** Start a proxy that answers nobody and writes down who was asked for; loopback addresses do not go through it. */
async function recordingProxy() {
  const asked = [];
  const server = net.createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", (data) => {
      const line = data.toString("latin1").split("\r\n")[0];
      if (!OWN_REQUEST.test(line)) asked.push(line);
      socket.destroy();
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { asked, address: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

/**
 * Start Chromium with a microphone that hears a recording, and a record of what it asks other machines for.
 *
 * @param {string[]} flags Further ones of Chromium.
 */
async function launch(flags = []) {
  const proxy = await recordingProxy();
  const browser = await require("playwright-core").chromium.launch({
    executablePath: chromium(),
    args: [
      ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []), // as root in a container
      `--proxy-server=${proxy.address}`, // by the flag, since Playwright's own setting sends loopback there, too
      "--use-fake-ui-for-media-stream",
      "--use-fake-device-for-media-stream",
      `--use-file-for-fake-audio-capture=${path.join(BUILT_IN, "demo-speech", "hello.wav")}`,
      ...flags,
    ],
  });
  return { browser, elsewhere: proxy.asked, close: () => browser.close().finally(proxy.close) };
}

const children = [];
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")));

/**
 * Start a program that ends with this one; its output is kept for a message.
 *
 * @returns {{child: import("node:child_process").ChildProcess, said: () => string}}
 */
function start(command, words, environment = {}) {
  const child = spawn(command, words, { env: { ...process.env, ...environment }, stdio: ["pipe", "pipe", "pipe"] });
  children.push(child);
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (text = (text + data).slice(-4000)));
  return { child, said: () => text };
}

/** Start `mlxk serve` with flags and return its address, without /v1. */
async function serve(flags, environment = {}) {
  const [command, ...words] = process.env.MLXK_COMMAND.split(" ");
  const all = [...words, "serve", "--port", "0", "--json", "--log-level", "warning", "--until-eof", ...flags];
  const { child, said } = start(command, all, environment);
  for await (const line of readline.createInterface({ input: child.stdout })) return JSON.parse(line).data.url;
  throw new Error(`the server did not start: ${said()}`);
}

/** Wait until a function returns something true, and return it. */
async function eventually(what, ask, seconds = 20) {
  const end = Date.now() + 1000 * seconds;
  for (;;) {
    const found = await ask();
    if (found) return found;
    assert.ok(Date.now() < end, `not after ${seconds} s: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

/** Return what axe finds to be wrong for people who use a page without seeing it, or by the keyboard. */
async function violations(page) {
  // The policy of a page may let no script in; the browser's own channel does.
  await page.evaluate(fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8"));
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`);
}

/** Keep a picture of a page in build/pictures. */
async function picture(page, name) {
  fs.mkdirSync(PICTURES, { recursive: true });
  await page.screenshot({ path: path.join(PICTURES, `${name}.png`) });
}

/** Return a new folder, which is removed at the end. */
function scratch() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "mlxk-browser-"));
  process.on("exit", () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

module.exports = { BUILT_IN, ROOT, eventually, launch, notRun, onPath, picture, scratch, serve, start, violations };
