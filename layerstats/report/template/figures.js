// From a chart and one of its views to plotly's traces and layout; nothing is drawn here.
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "solid"];
const PALETTE = 6;

// The style sheet's colours, as the scheme in force has them.
function colours() {
  const probe = element("span", { hidden: true });
  document.body.append(probe);
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = ["ink", "muted", "grid", "line", "panel", "mark", "mark-line", "accent"];
  const found = Object.fromEntries(names.map((name) => [name, read(name)]));
  found.series = Array.from({ length: PALETTE }, (_, at) => read(`series-${at}`));
  probe.remove();
  return found;
}

function axisLook(look, more) {
  return {
    gridcolor: look.grid,
    linecolor: look.line,
    zerolinecolor: look.grid,
    tickcolor: look.line,
    automargin: true,
    ...more,
  };
}

function baseLayout(chart, view, look) {
  const byLayer = chart.x === "layer" && chart.kind !== "scatter";
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: look.ink, size: 12, family: "system-ui, 'DejaVu Sans', sans-serif" },
    margin: { l: 55, r: 12, t: 28, b: 45 },
    hovermode: "x unified",
    hoverlabel: { bgcolor: look.panel, bordercolor: look.line, font: { color: look.ink } },
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: look.muted, activecolor: look.accent },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: axisLook(look, {
      title: { text: plain(view.x_axis || chart.x_axis) },
      unifiedhovertitle: { text: chart.x === "layer" ? "Layer %{x}" : "Step %{x}" },
      ...(byLayer ? { range: [-0.7, page.num_layers - 0.3], tickformat: "d" } : {}),
    }),
    yaxis: axisLook(look, {
      title: { text: wrapped(view.axis) },
      ...(view.log ? logTicks(chart, view) : {}),
    }),
    shapes: [],
  };
}

// Ticks at 1, 2, 5 of each decade, at whole decades where there are many.
function logTicks(chart, view) {
  const values = view.series
    .flatMap((series) => tables.get(chart.table).values[series.column])
    .filter((value) => value !== null);
  const few = Math.max(...values) < 500 * Math.min(...values);
  return { type: "log", dtick: few ? "D2" : 1, tickformat: "~g" };
}

// A long axis text in lines: the plot is not much higher than 40 letters are long.
function wrapped(text) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if ((lines.at(-1) + word).length > 36) lines.push("");
    lines.push(`${lines.pop()}${word} `);
  }
  return lines.map((line) => plain(line.trim())).join("<br>");
}

function xyFigure(chart, view, look) {
  const table = tables.get(chart.table);
  const rows = Array.from({ length: table.rows }, (_, row) => row).filter(
    (row) => table.values[chart.x][row] !== null,
  );
  const pick = (name) => rows.map((row) => table.values[name][row]);
  const x = pick(chart.x);
  const traces = view.series.flatMap((series, at) => [
    ...(series.low ? [rangeTrace(x, pick(series.low), pick(series.high), look.series[at % PALETTE])] : []),
    seriesTrace(series, x, pick(series.column), at, look, {
      byLayer: chart.x === "layer",
      bytes: view.bytes,
    }),
  ]);
  const layout = baseLayout(chart, view, look);
  layout.showlegend = view.series.length > 1 || view.level !== null;
  if (view.bytes) Object.assign(layout.yaxis, { tickformat: "~s", ticksuffix: "B" });
  if (view.bytes || view.series.some((series) => series.mark === "bar")) layout.yaxis.rangemode = "tozero";
  if (view.level !== null) traces.push(levelTrace(view, look));
  return { traces, layout };
}

function seriesTrace(series, x, y, at, look, { byLayer, bytes }) {
  const color = look.series[at % PALETTE];
  const trace = {
    x,
    y,
    name: plain(series.label || series.column),
    hovertemplate: bytes ? "%{y:.4~s}B" : "%{y:.5~g}",
  };
  if (series.mark === "bar") return { ...trace, type: "bar", marker: { color, opacity: 0.75 } };
  const many = x.length > 200;
  const mode = series.mark === "dots" ? "markers" : byLayer && !many ? "lines+markers" : "lines";
  // A layer without a value is a gap; a step without one has only a held-out loss.
  return {
    ...trace,
    type: "scatter",
    mode,
    connectgaps: !byLayer,
    marker: { color, size: 6, symbol: SYMBOLS[at % PALETTE] },
    line: { color, width: many ? 1.3 : 1.8, dash: DASHES[at % PALETTE] },
  };
}

// One upright stroke a layer from low to high. No error bar: the value may lie outside its range.
function rangeTrace(x, low, high, color) {
  const xs = [],
    ys = [];
  x.forEach((at, row) => {
    if (low[row] !== null && high[row] !== null) {
      xs.push(at, at, null);
      ys.push(low[row], high[row], null);
    }
  });
  return {
    type: "scatter",
    mode: "lines",
    x: xs,
    y: ys,
    line: { color, width: 5 },
    opacity: 0.35,
    hoverinfo: "skip",
    showlegend: false,
    connectgaps: false,
  };
}

function levelTrace(view, look) {
  return {
    type: "scatter",
    mode: "lines",
    x: [-0.5, page.num_layers - 0.5],
    y: [view.level, view.level],
    name: plain(view.level_label),
    line: { color: look.muted, dash: "dash", width: 1.2 },
    hoverinfo: "skip",
  };
}

function scatterFigure(chart, view, look) {
  const table = tables.get(chart.table);
  const layers = table.values.layer;
  const x = table.values[view.x],
    y = table.values[view.series[0].column];
  const layout = baseLayout(chart, view, look);
  layout.hovermode = "closest";
  layout.showlegend = false;
  layout.margin.t = 12;
  const dots = {
    type: "scatter",
    mode: "markers",
    x,
    y,
    customdata: layers,
    marker: {
      size: 10,
      color: layers,
      colorscale: "Viridis",
      line: { color: look.ink, width: 0.6 },
      colorbar: { title: { text: "Layer" }, thickness: 10, outlinewidth: 0 },
    },
    hovertemplate: "layer %{customdata}<br>%{x:.5~g}, %{y:.5~g}<extra></extra>",
  };
  const ring = {
    type: "scatter",
    mode: "markers+text",
    x: [],
    y: [],
    text: [],
    textposition: "top center",
    marker: { size: 18, symbol: "circle-open", color: look["mark-line"], line: { width: 3 } },
    hoverinfo: "skip",
  };
  return { traces: [dots, ring], layout };
}

// The rows of a matrix map: all modules, experts averaged, or the experts of one module.
function matrixRows(chart) {
  const table = tables.get(chart.table);
  const experts = table.values.expert ?? [];
  const split = new Set();
  for (let row = 0; row < table.rows; row += 1) {
    if (typeof experts[row] === "number" && table.values.layer[row] !== null)
      split.add(table.values.module[row]);
  }
  return ["", ...split];
}

function matrixCells(chart, name, module) {
  const table = tables.get(chart.table);
  const { layer, module: modules, expert } = table.values;
  const cells = new Map();
  for (let row = 0; row < table.rows; row += 1) {
    const value = table.values[name][row];
    if (
      layer[row] === null ||
      value === null ||
      (module && (modules[row] !== module || expert[row] === null))
    )
      continue;
    const key = module ? `expert ${expert[row]}` : modules[row];
    if (!cells.has(key)) cells.set(key, new Map());
    const sums = cells.get(key);
    const [sum, count] = sums.get(layer[row]) ?? [0, 0];
    sums.set(layer[row], [sum + value, count + 1]);
  }
  return cells;
}

function matrixFigure(chart, view, look, module) {
  const cells = matrixCells(chart, view.label, module);
  const names = [...cells.keys()];
  if (module) names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const x = Array.from({ length: page.num_layers }, (_, layer) => layer);
  const values = names.map((name) =>
    x.map((layer) => {
      const found = cells.get(name).get(layer);
      return found ? found[0] / found[1] : null;
    }),
  );
  const layout = baseLayout(chart, view, look);
  layout.hovermode = "closest";
  layout.margin.t = 12;
  layout.yaxis = axisLook(look, { type: "category", autorange: "reversed", showgrid: false });
  layout.xaxis.showgrid = false;
  const gap = names.length * x.length < 3000 ? 1 : 0;
  const trace = {
    type: "heatmap",
    x,
    y: names.map(plain),
    customdata: values,
    xgap: gap,
    ygap: gap,
    hoverongaps: false,
    colorscale: "Viridis",
    z: view.log
      ? values.map((row) => row.map((value) => (value === null ? null : Math.log10(value))))
      : values,
    colorbar: { thickness: 12, outlinewidth: 0 },
    hovertemplate: "layer %{x}, %{y}<br>%{customdata:.5~g}<extra></extra>",
  };
  return { traces: [trace], layout };
}

function rasterFigure(chart, view, look) {
  const x = Array.from({ length: page.num_layers }, (_, layer) => layer);
  const y = chart.rows.map(([interval]) => interval);
  const z = chart.rows.map(([, active]) => {
    const row = new Array(page.num_layers).fill(0);
    for (const layer of active) row[layer] = 1;
    return row;
  });
  const layout = baseLayout(chart, view, look);
  layout.hovermode = "closest";
  layout.margin.t = 12;
  layout.yaxis = axisLook(look, {
    title: { text: wrapped(view.axis) },
    autorange: "reversed",
    showgrid: false,
    zeroline: false,
    tickformat: "d",
  });
  layout.xaxis.showgrid = false;
  const gap = y.length <= 100 && x.length <= 100 ? 1 : 0;
  const trace = {
    type: "heatmap",
    x,
    y,
    z,
    zmin: 0,
    zmax: 1,
    xgap: gap,
    ygap: gap,
    showscale: false,
    colorscale: [
      [0, look.grid],
      [1, look.series[0]],
    ],
    text: z.map((row) => row.map((value) => (value ? "trains" : "rests"))),
    hovertemplate: "layer %{x}, interval %{y}: %{text}<extra></extra>",
  };
  return { traces: [trace], layout };
}

const FIGURES = { xy: xyFigure, scatter: scatterFigure, matrix: matrixFigure, raster: rasterFigure };
