// Uses a built page in headless Chromium, for tests and benchmarks. Reads a job from standard input:
//   { chromium: its path, flags, steps }
// and writes { origin, requests, failures, shown }: where the page was served from, all that it requested, errors and
// warnings on its console, and what a user could see after each step. A step is the name of one of STEPS and its
// arguments; recordings are 0 and 1.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { text } from "node:stream/consumers";
import { chromium } from "playwright-core";

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm" };

const recording = (page, number) => page.locator(".recording").nth(number);

const STEPS = {
  /** Open the page in the folder `site`. */
  async open(page, site) {
    root = site;
    await page.goto(origin);
  },
  file: (page, number, path) => recording(page, number).locator(".file").setInputFiles(path),
  async record(page, number, seconds) {
    const button = recording(page, number).locator(".record");
    await button.click();
    await recording(page, number)
      .getByText(/^Recording:/)
      .waitFor();
    await page.waitForTimeout(1000 * seconds);
    await button.click();
  },
  play: (page, number) => recording(page, number).locator(".play").click(),
  /** Ask for a microphone that the user refuses. */
  async refuse(page, number) {
    // Chromium refuses what is not among the permissions that are granted.
    await page.context().clearPermissions();
    await page.context().grantPermissions(["geolocation"]);
    await recording(page, number).locator(".record").click();
  },
  prior: (page, index) => page.locator("#prior").fill(`${index}`),
  dim: (page, dim) => page.locator("#dim").selectOption(`${dim}`),
  /** Press keys, one after the other. */
  async press(page, ...keys) {
    for (const key of keys) await page.keyboard.press(key);
  },
  colours: (page, colorScheme) => page.emulateMedia({ colorScheme }),
  size: (page, width, height) => page.setViewportSize({ width, height }),
  screenshot: (page, path) => page.screenshot({ path, fullPage: true }),
};

/** Wait until the page has nothing more to do. */
const settle = (page) =>
  page.waitForFunction(() => {
    const shown = [...document.querySelectorAll("#verdict, .status")].map((part) => part.textContent);
    return !shown.some((part) => /^(Loading|Comparing|Reading|Waiting)/.test(part));
  });

const see = (page) =>
  page.evaluate(() => {
    const texts = (selector) => [...document.querySelectorAll(selector)].map((part) => part.textContent);
    const [verdict, explanation, prior] = texts("#verdict, #explanation, #prior-text");
    const number = (id) =>
      document.getElementById(id).value === "" ? null : Number(document.getElementById(id).value);
    return {
      verdict,
      explanation,
      prior: document.getElementById("prior-option").hidden ? null : prior,
      cosine: number("cosine"),
      llr: number("llr"),
      posterior: number("posterior"),
      status: texts(".status"),
      errors: texts(".error"),
      buttons: texts(".recording button"),
      dims: texts("#dim option"),
      facts: texts("#facts dd"),
      focus: document.activeElement.id || document.activeElement.className,
      milliseconds: performance.getEntriesByType("measure").map(({ name, duration }) => [name, duration]),
    };
  });

const job = JSON.parse(await text(process.stdin));
let root = null;
const server = createServer(async ({ url }, response) => {
  const path = url === "/" ? "/index.html" : url;
  try {
    const content = await readFile(join(root, path));
    response.setHeader("Content-Type", TYPES[extname(path)] ?? "application/octet-stream").end(content);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const origin = `http://127.0.0.1:${server.address().port}`;
const browser = await chromium.launch({ executablePath: job.chromium, args: job.flags });
try {
  const context = await browser.newContext({ permissions: ["microphone"] });
  context.setDefaultTimeout(30000);
  const page = await context.newPage();
  const [requests, failures, shown] = [[], [], []];
  context.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => failures.push(`${error}`));
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && failures.push(message.text()));
  for (const [name, ...values] of job.steps) {
    await STEPS[name](page, ...values);
    await settle(page);
    shown.push(await see(page));
  }
  process.stdout.write(JSON.stringify({ origin, requests, failures, shown }));
} finally {
  await browser.close();
  server.close();
}
