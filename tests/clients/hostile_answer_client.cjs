// Answers that want to harm the chat page, and answers that are long: nothing takes effect, and no frame takes long.
const assert = require("node:assert");
const http = require("node:http");
const path = require("node:path");
const { ROOT, eventually, launch, picture, start } = require("./browser.cjs");
const { Chat, watch } = require("./chat_page.cjs");

const LONGEST_FRAME = 60; // milliseconds of work of the page's thread
const TRACED = ["toplevel"];

const FORBIDDEN = "base embed form iframe img input link meta object script source style svg video".split(" ");

/** Start the server with an engine that says what the prompt tells it to; return its address. */
async function scripted() {
  const program = path.join(ROOT, "tests", "serving", "scripted_serve.py");
  const words = [...process.env.MLXK_COMMAND.split(" ").slice(0, 1), program, JSON.stringify({ port: 0 })];
  const { child, said } = start(words[0], words.slice(1), { STEP_SECONDS: "0" });
  const first = await Promise.race([
    new Promise((done) => child.stdout.once("data", done)),
    new Promise((done) => child.once("exit", done)),
  ]);
  assert.ok(child.exitCode === null, said());
  return `http://127.0.0.1:${JSON.parse(first).port}`;
}

/** Start a site elsewhere, which notes what is asked of it. */
async function site() {
  const asked = [];
  const server = http.createServer((request, response) => {
    asked.push(request.url);
    response.end("window.harmed = true");
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { asked, url: `http://127.0.0.1:${server.address().port}` };
}

const hostile = (url) => `# Read this

<script>window.harmed = true</script><script src="${url}/script.js"></script>
<img src="${url}/image.png" onerror="window.harmed = true"> ![a picture](${url}/markdown.png "title")
![a picture][reference] <picture><source srcset="${url}/source.png"></picture>

<svg onload="window.harmed = true"><image href="${url}/svg.png"/></svg>
<iframe src="${url}/frame.html" srcdoc="<script>parent.harmed = true</script>"></iframe>
<object data="${url}/object"></object> <embed src="${url}/embed"> <video src="${url}/video.mp4" autoplay></video>
<link rel="stylesheet" href="${url}/style.css"> <link rel="dns-prefetch" href="//elsewhere.example">
<style>@import url(${url}/import.css); body { display: none; background: url(${url}/background.png) }</style>
<meta http-equiv="refresh" content="0; url=${url}/refresh"> <base href="${url}/">
<form action="${url}/form"><input name="key" autofocus onfocus="window.harmed = true"><button>Send</button></form>
<details open ontoggle="window.harmed = true"><summary>More</summary>text</details>
<p style="position: fixed; inset: 0; background: url(${url}/p.png)" id="prompt" class="main">over everything</p>

[a script](javascript:window.harmed=true) [data](data:text/html,<script>parent.harmed=true</script>)
[a link](${url}/link) [mail](mailto:ada@example.com) <a href="${url}/ping" ping="${url}/ping2">ping</a>
[vb](vbscript:x) [file](file:///etc/passwd) <javascript:window.harmed=true> <${url}/automatic>

[reference]: ${url}/reference.png
`;

const BLOCK = `## A heading of many

A paragraph with *emphasis*, **strength**, \`code\`, a [link](https://example.com/a) and enough words that it takes a
few lines on a screen of a usual width, since that is what answers look like, and their layout takes time too.

- one item of a list
- another one, with \`more code\`
  1. and a list in it

| name | value |
|---|---|
| one | 1 |
| two | 2 |

\`\`\`python
def answer(question: str) -> str:
    return "The answer to " + question  # as always
\`\`\`

`;
const SMALL = { bytes: 100_000, pieces: 1_000 };
const SHAPES = {
  "blocks of every kind": { say: BLOCK, bytes: 1_000_000, pieces: 10_000 },
  "one paragraph": { say: "word and word, *and* more " },
  "one block of code": { before: "```python\n", say: "value = compute(one, two)  # a comment\n" },
  "one list": { say: "- an item with `code` and a [link](https://example.com)\n" },
  "one table": { before: "| a | b |\n|---|---|\n", say: "| one cell | another *cell* |\n" },
  "quotes in quotes": { say: "> > > > a quote of a quote\n" },
  "brackets that open": { say: "[[[[![![(((<<<<" },
  "marks without an end": { say: "**_`~~*" },
};

class Shown extends Chat {
  async begin() {
    await this.page.keyboard.press("Alt+n");
    await this.page.locator("article").first().waitFor({ state: "detached" });
  }

  /** Ask for a text, so many times, in so many pieces, behind another one. */
  async askFor(say, times, pieces, before = "") {
    // Not by roles: to find these takes the thread of the page longer than all that is measured.
    await this.page.locator("#prompt").fill(JSON.stringify({ say, times, pieces, before }));
    await this.page.keyboard.press("Enter");
  }

  /** Wait for the end of the answer. */
  async ended(seconds = 150) {
    const over = () =>
      document.querySelector("#stop-button").hidden && document.querySelector("article[aria-busy=false]");
    await this.page.waitForFunction(over, null, { timeout: 1000 * seconds, polling: 200 });
  }
}

async function harmless(shown, url) {
  const { page } = shown;
  await shown.askFor(hostile(url), 1, 40);
  await shown.ended();
  await picture(page, "page-hostile");
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  const found = await shown.answers.last().evaluate((answer) => {
    const every = [...answer.querySelectorAll("*")];
    return {
      names: [...new Set(every.map((each) => each.localName))],
      acting: every.flatMap(({ attributes }) => [...attributes].filter(({ name }) => /^(on|style|id|ping)/.test(name))),
      links: [...answer.querySelectorAll("a")].map(({ href, rel, target }) => ({ href, rel, target })),
    };
  });
  assert.deepEqual(found.names.filter((name) => FORBIDDEN.includes(name)), []);
  assert.deepEqual(found.acting, []);
  assert.ok(found.links.length >= 3);
  for (const { href, rel } of found.links) {
    assert.match(href, /^(https?:|mailto:)/);
    assert.match(rel, /noopener/);
    assert.match(rel, /noreferrer/);
  }
  assert.match(await shown.answers.last().innerText(), /over everything/);
  await page.getByRole("textbox", { name: "Message", exact: true }).click({ timeout: 2000 }); // nothing lies over it
}

/** Return the longest work of the page's thread, in milliseconds of its own time, while something is done. */
async function longestWork(browser, page, act) {
  await browser.startTracing(page, { categories: TRACED });
  await act();
  const { traceEvents } = JSON.parse((await browser.stopTracing()).toString());
  const names = traceEvents.filter((each) => each.name === "thread_name" && each.args.name === "CrRendererMain");
  const mains = new Set(names.map((each) => `${each.pid}/${each.tid}`));
  // The thread's own time: on a busy machine a task waits, too, and that is not the page's doing.
  const tasks = traceEvents.filter((each) => each.name === "RunTask" || each.name === "ThreadControllerImpl::RunTask");
  const times = tasks.filter((each) => mains.has(`${each.pid}/${each.tid}`)).map((each) => each.tdur ?? 0);
  assert.ok(times.length > 100, "nothing was traced");
  return Math.max(...times) / 1000;
}

/** Have an answer of a shape written, and return its longest work. */
async function timed(browser, shown, { before = "", say, bytes, pieces }) {
  const times = Math.ceil(bytes / say.length);
  await shown.begin();
  const longest = await longestWork(browser, shown.page, async () => {
    await shown.askFor(say, times, pieces, before);
    await shown.ended();
  });
  if (say === BLOCK) assert.equal(await shown.page.locator("article h2").count(), times);
  return longest;
}

async function quick(browser, shown) {
  const slow = [];
  for (const [name, shape] of Object.entries(SHAPES)) {
    const began = Date.now();
    let longest = await timed(browser, shown, { ...SMALL, ...shape });
    // Once more, since the time of a thread grows, too, while others use the caches of its processor.
    if (longest > LONGEST_FRAME) longest = Math.min(longest, await timed(browser, shown, { ...SMALL, ...shape }));
    process.stdout.write(`${name}: ${Math.round(longest)} ms, all after ${Date.now() - began} ms\n`);
    if (longest > LONGEST_FRAME) slow.push(`${name}: ${Math.round(longest)} ms of work in one frame`);
  }
  return slow;
}

async function stops(shown, address) {
  await shown.begin();
  await shown.askFor("word ", 1_000_000, 1_000_000);
  await shown.answers.last().getByText("word word").first().waitFor();
  await shown.page.getByRole("button", { name: "Stop", exact: true }).click();
  await shown.ended();
  await shown.answers.last().getByText("Stopped by you.").waitFor();
  const running = async () => /mlxk_answers_running 0/.test(await (await fetch(`${address}/metrics`)).text());
  await eventually("the server stops, too", running);
}

async function main() {
  const [address, { browser, elsewhere, close }, other] = await Promise.all([scripted(), launch(), site()]);
  const page = await (await browser.newContext({ viewport: { width: 1280, height: 800 } })).newPage();
  const faults = watch(page, address);
  const shown = new Shown(page);
  await shown.open(address);
  await shown.model("demo");
  await harmless(shown, other.url);
  await stops(shown, address);
  const slow = await quick(browser, shown);
  const wrong = [...faults, ...other.asked, ...elsewhere, ...slow];
  assert.equal(wrong.length, 0, wrong.join("\n"));
  await close();
  process.exit(0);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
