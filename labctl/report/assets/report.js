"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const drawn = new Map(); // chart → index of the figure that it shows

  // A figure says which role each trace plays; the style sheet says which colour a role has, in the light and in the dark.
  function dressed(figure) {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    const font = { family: of("font"), size: 13, color: of("ink") };
    const data = figure.data.map((trace) => {
      const color = of(trace.meta.role);
      const marker = { ...trace.marker, color };
      if (marker.line) marker.line = { ...marker.line, color: of("ink") };
      const line = trace.line && { ...trace.line, color };
      return { ...trace, marker, ...(line && { line }), insidetextfont: { color: of("on-phase"), size: 12 }, hoverlabel: { font: { family: of("font") } } };
    });
    const axis = { gridcolor: of("line"), linecolor: of("line"), tickfont: { color: of("muted") } };
    const hoverlabel = { bgcolor: of("surface"), bordercolor: of("edge"), font };
    const layout = { ...figure.layout, font, hoverlabel, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis[0-9]*$/.test(key))) {
      const title = layout[name].title && { ...layout[name].title, font: { size: 13, color: of("muted") } };
      layout[name] = { ...layout[name], ...axis, tickfont: { color: of(name[0] === "x" ? "muted" : "ink") }, ...(title && { title }) };
    }
    return [data, layout, { displayModeBar: false, responsive: true }];
  }

  function draw(chart, index) {
    const figure = figures[chart.dataset.figures][index];
    drawn.set(chart, index);
    chart.style.minHeight = `${figure.layout.height}px`;
    Plotly.react(chart, ...dressed(figure));
  }

  const charts = [...document.querySelectorAll(".chart")];
  charts.forEach((chart) => { chart.parentElement.hidden = false; });
  const first = (chart) => Number(chart.dataset.index ?? 0);
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        seen.unobserve(target);
        if (!drawn.has(target)) draw(target, first(target));
      }
    }
  }, { rootMargin: "300px" });
  charts.forEach((chart) => seen.observe(chart));

  document.querySelectorAll("select[data-chart]").forEach((which) => which.addEventListener("change", () => {
    draw(document.getElementById(which.dataset.chart), Number(which.value));
    which.closest("figure").querySelectorAll("[data-note]").forEach((note) => { note.hidden = note.dataset.note !== which.value; });
  }));

  const again = () => drawn.forEach((index, chart) => draw(chart, index));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => charts.forEach((chart) => { if (!drawn.has(chart)) draw(chart, first(chart)); }));

  // A link to a cell opens what is told of it.
  const reveal = () => document.getElementById(decodeURIComponent(location.hash.slice(1)))?.querySelector(".evidence")?.setAttribute("open", "");
  addEventListener("hashchange", reveal);
  reveal();

  const said = document.getElementById("said");
  document.querySelectorAll(".copy").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.nextElementSibling;
      const word = button.firstElementChild;
      try {
        await navigator.clipboard.writeText(code.textContent);
        word.textContent = said.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // no clipboard here: one key is left to press
        word.textContent = said.textContent = "Selected: press Ctrl-C";
      }
      setTimeout(() => { word.textContent = "Copy"; said.textContent = ""; }, 2500);
    });
  });
})();
