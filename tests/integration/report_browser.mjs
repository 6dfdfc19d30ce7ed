// Opens report pages in Chromium and says as JSON what happened there: node report_browser.mjs PAGE...
// Each page is opened in the light and in the dark, offline, from an empty cache, and all of it is scrolled through.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const PATIENCE = 60000; // milliseconds: the host may be busy with other tests
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

async function visit(file, colorScheme, width) {
  const context = await browser.newContext({ colorScheme, offline: true, viewport: { width, height: 900 } });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  const seen = { file, colorScheme, width, console: [], errors: [], requests: [], dialogs: 0 };
  page.on("console", (message) => seen.console.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("dialog", (dialog) => { seen.dialogs += 1; return dialog.dismiss(); });
  page.on("request", (request) => { if (!request.url().startsWith("data:")) seen.requests.push(request.url()); });
  await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
  seen.loaded_ms = await page.evaluate(() => performance.getEntriesByType("navigation")[0].loadEventStart);

  // The last of a list, and what its chart's axis said before and after.
  async function choose(list, title) {
    const which = page.locator(list);
    const options = await which.locator("option").allTextContents();
    if (options.length < 2) return undefined;
    const axis = page.locator(title);
    const before = await axis.textContent();
    await which.selectOption(String(options.length - 1));
    await page.waitForFunction(([found, text]) => document.querySelector(found)?.textContent !== text, [title, before], { timeout: PATIENCE });
    return [before, await axis.textContent()];
  }

  seen.charts = await page.locator(".chart").count();
  seen.lazy = await page.locator(".chart .main-svg").count() === 0;
  for (const chart of await page.locator(".chart").all()) {
    // What is laid out only when it is reached may push the chart away again.
    const end = Date.now() + PATIENCE;
    do await chart.scrollIntoViewIfNeeded(); while (!await chart.locator(".main-svg").count() && Date.now() < end && await page.waitForTimeout(200) === undefined);
    await chart.locator(".main-svg").first().waitFor({ timeout: PATIENCE });
  }
  seen.drawn = await page.locator(".chart:has(.main-svg)").count();
  seen.points = await page.locator("#chart-samples .scatterlayer .point").count();

  seen.chosen = await choose("#which", "#chart-samples .xtitle");
  seen.curves = await choose("#which-curve", "#chart-curves .ytitle");
  seen.density = await choose("#which-density", "#chart-density .legend");
  // The colour of the charts' text follows the scheme, also when it changes while the page is open.
  const color = () => page.evaluate(() => getComputedStyle(document.querySelector(".chart .ytick text")).fill);
  if (seen.charts) {
    const before = await color();
    await page.emulateMedia({ colorScheme: colorScheme === "dark" ? "light" : "dark" });
    await page.waitForFunction((text) => getComputedStyle(document.querySelector(".chart .ytick text")).fill !== text, before, { timeout: PATIENCE });
    await page.emulateMedia({ colorScheme });
    await page.waitForFunction((text) => getComputedStyle(document.querySelector(".chart .ytick text")).fill === text, before, { timeout: PATIENCE });
  }
  const copy = page.locator(".copy:visible").first();
  if (await copy.count()) {
    await copy.click();
    await page.waitForFunction(() => /Copied|Selected/.test(document.getElementById("said").textContent));
    seen.copied = await copy.locator("span").first().textContent();
  }
  await page.evaluate(() => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  seen.pwned = await page.evaluate(() => window.pwned ?? null);
  seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  // Into the page's own world past its policy: the debugger may, a script element may not.
  await page.evaluate(axe);
  // Contrast is of the style sheet, which the other pages have too: of thousands of rows it is half of the time.
  const contrast = !/\/large\//.test(file);
  const { violations, passes } = await page.evaluate(
    (enabled) => axe.run(document, { resultTypes: ["violations"], rules: { "color-contrast": { enabled } } }), contrast);
  seen.passes = passes.length;
  seen.violations = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.slice(0, 3).map((n) => n.html.slice(0, 200)).join(" | ")}`);
  await context.close();
  return seen;
}

try {
  const visits = [];
  for (const file of process.argv.slice(2)) {
    visits.push(await visit(file, "light", 1280), await visit(file, "dark", 390));
  }
  console.log(JSON.stringify(visits));
} finally {
  await browser.close();
}
