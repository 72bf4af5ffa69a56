// Puts the page together: colours, the picker of the marked layer, charts, tables, printing.
function startTheme() {
  const select = document.getElementById("theme");
  const set = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  let kept = "";
  try {
    kept = localStorage.getItem("layerstats-theme") ?? "";
  } catch {
    // A page opened from a file may have no storage.
  }
  select.value = ["light", "dark"].includes(kept) ? kept : "";
  set(select.value);
  select.addEventListener("change", () => {
    set(select.value);
    try {
      localStorage.setItem("layerstats-theme", select.value);
    } catch {
      // As above.
    }
    redrawCharts();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
}

function headline(layer) {
  const parts = [];
  for (const table of page.tables) {
    const row = (table.values.layer ?? []).indexOf(layer);
    if (row < 0) continue;
    for (const name of table.headline)
      parts.push(`${name} ${written(table.values[name][row], kindOf(table, name))}`);
  }
  return parts.join(" · ");
}

function startPicker() {
  if (!page.num_layers) return;
  const select = document.getElementById("layer"),
    output = document.getElementById("marked");
  select.append(
    element("option", { value: "" }, "none"),
    ...Array.from({ length: page.num_layers }, (_, layer) =>
      element("option", { value: layer }, String(layer)),
    ),
  );
  select.addEventListener("change", () => pin(select.value === "" ? null : Number(select.value)));
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("clear").addEventListener("click", () => pin(null));
  document.getElementById("picker").hidden = false;
  marks.watchers.push((layer, pinned) => {
    select.value = pinned === null ? "" : String(pinned);
    output.textContent = layer === null ? "" : `Layer ${layer}: ${headline(layer)}`;
  });
}

function startPrinting() {
  // Charts have the width of the window: on paper they are drawn again as wide as the sheet.
  const onPaper = (width) => {
    for (const { plot } of charts)
      Plotly.relayout(plot, width ? { width, autosize: false } : { width: null, autosize: true });
  };
  const root = document.documentElement;
  let theme;
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    redrawCharts();
    onPaper(660);
  });
  addEventListener("afterprint", () => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    onPaper(0);
    redrawCharts();
  });
}

startTheme();
startPicker();
for (const chart of page.charts) charts.push(new ChartView(chart));
redrawCharts(); // once all are in their places: how wide one is depends on its neighbours
for (const table of page.tables) if (table.shown) new TableView(table);
if (!page.charts.length) document.getElementById("charts").hidden = true;
startPrinting();
document.documentElement.dataset.ready = "yes";
