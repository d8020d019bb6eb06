// Draw the charts. As SVG: only there do they follow the colours of the page.
const config = {
  background: "transparent",
  font: getComputedStyle(document.body).fontFamily,
  autosize: { type: "fit", contains: "padding" },
  view: { stroke: null },
  axis: {
    domainColor: "var(--line)",
    gridColor: "var(--line)",
    tickColor: "var(--line)",
    labelColor: "var(--quiet)",
    labelFontSize: 12,
    titleColor: "var(--text)",
    titleFontSize: 13,
    titleFontWeight: "normal",
  },
  axisBand: { domain: false, ticks: false, labelLimit: 90 },
};
const specs = JSON.parse(document.getElementById("specs").textContent);
for (const [id, spec] of Object.entries(specs)) {
  vegaEmbed(document.getElementById(id), { width: "container", ...spec }, {
    mode: "vega-lite",
    renderer: "svg",
    config,
    actions: false,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  });
}
