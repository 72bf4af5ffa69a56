// Charts on the page: drawn by plotly, linked by the marked layer.
const charts = [];
// Buttons are named one by one: plotly's own set has one that uploads the chart.
const SETTINGS = {
  displaylogo: false,
  responsive: true,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["resetScale2d"]],
  toImageButtonOptions: { format: "svg" },
};

class ChartView {
  constructor(chart) {
    Object.assign(this, { chart, view: chart.views[0], module: "" });
    this.linked = chart.x === "layer";
    this.build();
    marks.watchers.push((layer) => this.mark(layer));
  }

  build() {
    const { chart } = this;
    const choices = element("div", { class: "choices" });
    const choice = (label, options, act) => {
      const select = element(
        "select",
        { "aria-label": label },
        ...options.map(([value, text]) => element("option", { value }, text)),
      );
      select.addEventListener("change", () => {
        act(select.value);
        this.draw();
      });
      choices.append(select);
    };
    if (chart.views.length > 1)
      choice(
        `${chart.title}: what is drawn`,
        chart.views.map((view, at) => [at, view.label]),
        (at) => {
          this.view = chart.views[at];
        },
      );
    const modules = chart.kind === "matrix" ? matrixRows(chart) : [];
    if (modules.length > 1)
      choice(
        `${chart.title}: rows`,
        modules.map((name) => [name, name ? `experts of ${name}` : "modules, mean over experts"]),
        (name) => {
          this.module = name;
        },
      );
    const tall = chart.kind === "matrix" || (chart.kind === "raster" && chart.rows.length > 80);
    this.plot = element("div", {
      class: tall ? "plot tall" : "plot",
      id: `plot-${chart.id}`,
      tabindex: "0",
      role: "group",
      "aria-label": this.spoken(),
    });
    this.caption = element("figcaption");
    const wide = chart.kind === "matrix" ? "chart wide" : "chart";
    document
      .getElementById("grid")
      .append(
        element(
          "figure",
          { class: wide, id: `chart-${chart.id}` },
          element("header", {}, element("h3", {}, chart.title), choices),
          this.plot,
          this.caption,
        ),
      );
    if (this.linked) this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  spoken() {
    return `Chart: ${this.chart.title}. ${this.linked ? "Left and right arrow keys mark a layer, Escape clears." : ""}`;
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) step(by);
    else if (event.key === "Escape") pin(null);
    else return;
    event.preventDefault();
  }

  draw() {
    const look = colours();
    const { traces, layout } = FIGURES[this.chart.kind](this.chart, this.view, look, this.module);
    this.look = look;
    layout.shapes = this.shapes(markedLayer());
    this.caption.textContent = [
      this.chart.kind === "matrix" && `Colour: ${this.view.log ? "log10 of " : ""}${this.view.axis}.`,
      this.view.note,
      this.chart.note,
    ]
      .filter(Boolean)
      .join(" ");
    const first = !this.plot.data;
    Plotly.react(this.plot, traces, layout, SETTINGS);
    if (this.chart.kind === "scatter") this.mark(markedLayer());
    if (first && this.linked) this.listen();
  }

  listen() {
    const layerAt = (event) => {
      const dot = event.points[0];
      return this.chart.kind === "scatter" ? dot.customdata : Math.round(dot.x);
    };
    this.plot.on("plotly_hover", (event) => point(layerAt(event)));
    this.plot.on("plotly_unhover", () => point(null));
    this.plot.on("plotly_click", (event) => togglePin(layerAt(event)));
  }

  shapes(layer) {
    if (!this.linked || layer === null || this.chart.kind === "scatter") return [];
    const map = this.chart.kind !== "xy";
    const line = { color: this.look["mark-line"], width: map ? 2 : 0 };
    const fill = map ? "rgba(0,0,0,0)" : this.look.mark;
    return [
      {
        type: "rect",
        xref: "x",
        yref: "paper",
        x0: layer - 0.5,
        x1: layer + 0.5,
        y0: 0,
        y1: 1,
        line,
        fillcolor: fill,
        layer: map ? "above" : "below",
      },
    ];
  }

  mark(layer) {
    if (!this.linked || !this.plot.data) return;
    if (this.chart.kind !== "scatter") {
      Plotly.relayout(this.plot, { shapes: this.shapes(layer) });
      return;
    }
    const { customdata, x, y } = this.plot.data[0];
    const at = layer === null ? -1 : customdata.indexOf(layer);
    const known = at >= 0 && x[at] !== null && y[at] !== null;
    Plotly.restyle(
      this.plot,
      { x: [known ? [x[at]] : []], y: [known ? [y[at]] : []], text: [known ? [String(layer)] : []] },
      [1],
    );
  }
}

function redrawCharts() {
  for (const chart of charts) chart.draw();
}
