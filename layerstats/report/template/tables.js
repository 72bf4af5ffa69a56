// Tables that sort, filter and turn pages: only the rows of one page are ever in the document.
const PAGE_SIZES = [25, 50, 200, 1000];

// `word`, `column>2`, `column=text`, `column:part`; every term must hold.
function parseFilter(table, text) {
  return text
    .trim()
    .split(/\s+/)
    .filter(Boolean)
    .map((term) => {
      const found = /^([^<>=!:]+)(<=|>=|!=|<|>|=|:)(.*)$/.exec(term);
      if (!found || !table.values[found[1]]) return { test: contains(table, term.toLowerCase()) };
      const [, name, sign, asked] = found;
      const values = table.values[name];
      const number = asked === "" ? NaN : Number(asked);
      if (["<", ">", "<=", ">="].includes(sign)) {
        if (Number.isNaN(number)) return { wrong: `${term}: ${sign} needs a number` };
        const compare = {
          "<": (a) => a < number,
          ">": (a) => a > number,
          "<=": (a) => a <= number,
          ">=": (a) => a >= number,
        }[sign];
        return { test: (row) => typeof values[row] === "number" && compare(values[row]) };
      }
      if (sign === ":")
        return {
          test: (row) =>
            String(values[row] ?? "")
              .toLowerCase()
              .includes(asked.toLowerCase()),
        };
      const same = (row) =>
        typeof values[row] === "number" ? values[row] === number : String(values[row] ?? "") === asked;
      return { test: sign === "=" ? same : (row) => !same(row) };
    });
}

function contains(table, part) {
  table.words ??= Array.from({ length: table.rows }, (_, row) =>
    table.columns
      .filter((column) => column.kind === "text")
      .map((column) => String(table.values[column.name][row] ?? "").toLowerCase())
      .join("\n"),
  );
  return (row) => table.words[row].includes(part);
}

function compareRows(values, direction) {
  return (one, other) => {
    const a = values[one],
      b = values[other];
    const gapA = a === null || a === "",
      gapB = b === null || b === "";
    if (gapA || gapB) return gapA - gapB || one - other; // what is missing comes last either way
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return direction * order || one - other;
  };
}

class TableView {
  constructor(table) {
    Object.assign(this, { table, sorted: null, direction: 1, size: 50, page: 0, order: [] });
    this.layers = table.values.layer ?? null;
    const known = (this.layers ?? []).filter(isLayer);
    this.many = new Set(known).size < known.length;
    this.build();
    this.refresh();
    marks.watchers.push((layer, pinned) => this.mark(layer, pinned));
  }

  build() {
    const { table } = this;
    const name = `table-${table.id}`;
    this.filter = element("input", {
      type: "search",
      id: `${name}-filter`,
      placeholder: this.example(),
      autocomplete: "off",
      spellcheck: "false",
    });
    this.filter.addEventListener("input", () => this.refresh());
    this.only = element("input", { type: "checkbox", id: `${name}-only` });
    this.only.addEventListener("change", () => this.refresh());
    this.sizes = element(
      "select",
      { "aria-label": "Rows on a page" },
      ...PAGE_SIZES.map((size) => element("option", { value: size, selected: size === 50 }, `${size} rows`)),
    );
    this.sizes.addEventListener("change", () => {
      this.size = Number(this.sizes.value);
      this.page = 0;
      this.draw();
    });
    this.back = this.button("‹", "Previous page", () => this.turn(-1));
    this.forth = this.button("›", "Next page", () => this.turn(1));
    this.save = this.button("Save CSV", `Save ${table.title} as CSV`, () => this.download());
    this.count = element("span", { class: "count", role: "status" });
    this.head = element("tr");
    for (const column of table.columns) this.head.append(this.header(column));
    this.body = element("tbody");
    this.frame = element(
      "div",
      { class: "frame", tabindex: "0", role: "region", "aria-label": table.title },
      element(
        "table",
        {},
        element("caption", { class: "hidden" }, table.title),
        element("thead", {}, this.head),
        this.body,
      ),
    );
    this.body.addEventListener("pointerover", (event) => point(this.layerOf(event)));
    this.body.addEventListener("pointerleave", () => point(null));
    this.body.addEventListener("click", (event) => {
      const layer = this.layerOf(event);
      if (layer !== null) togglePin(layer);
    });
    const tools = element(
      "div",
      { class: "tools" },
      element("label", { for: this.filter.id }, "Filter"),
      this.filter,
    );
    if (this.many) tools.append(element("label", {}, this.only, "only the marked layer"));
    tools.append(this.count, this.back, this.forth, this.sizes, this.save);
    const note = table.note ? [element("p", { class: "aside" }, table.note)] : [];
    document
      .getElementById("shelf")
      .append(
        element(
          "section",
          { class: "table", id: name },
          element("h3", {}, table.title),
          ...note,
          tools,
          this.frame,
        ),
      );
  }

  example() {
    const number = this.table.columns.find((column) => column.kind === "number");
    return number ? `words, or ${number.name}>1` : "words";
  }

  button(text, label, act) {
    const made = element("button", { type: "button", "aria-label": label }, text);
    made.addEventListener("click", act);
    return made;
  }

  header(column) {
    const button = element("button", { type: "button", title: column.unit || column.name }, column.name);
    button.addEventListener("click", () => this.sort(column.name));
    return element(
      "th",
      {
        scope: "col",
        "aria-sort": "none",
        "data-column": column.name,
        class: column.kind === "text" ? "text" : false,
      },
      button,
    );
  }

  layerOf(event) {
    const row = event.target.closest("tr");
    return row && row.dataset.layer !== undefined ? Number(row.dataset.layer) : null;
  }

  sort(name) {
    this.direction = this.sorted === name ? -this.direction : 1;
    this.sorted = name;
    for (const cell of this.head.children) {
      const here = cell.dataset.column === name;
      cell.setAttribute("aria-sort", here ? (this.direction > 0 ? "ascending" : "descending") : "none");
    }
    this.refresh();
  }

  refresh() {
    const terms = parseFilter(this.table, this.filter.value);
    const wrong = terms.find((term) => term.wrong);
    this.filter.setAttribute("aria-invalid", wrong ? "true" : "false");
    this.filter.title = wrong?.wrong ?? "";
    const one = this.only.checked ? marks.pinned : null;
    this.order = [];
    for (let row = 0; row < this.table.rows; row += 1) {
      const kept = one === null || this.layers[row] === one;
      if (kept && terms.every((term) => term.test?.(row) ?? false)) this.order.push(row);
    }
    if (this.sorted) this.order.sort(compareRows(this.table.values[this.sorted], this.direction));
    this.page = 0;
    this.draw();
  }

  turn(by) {
    this.page += by;
    this.draw();
    this.frame.scrollTop = 0;
  }

  draw() {
    const pages = Math.max(1, Math.ceil(this.order.length / this.size));
    this.page = Math.min(pages - 1, Math.max(0, this.page));
    const rows = this.order.slice(this.page * this.size, (this.page + 1) * this.size);
    this.body.replaceChildren(...rows.map((row) => this.row(row)));
    const part = pages > 1 ? `, page ${this.page + 1} of ${pages}` : "";
    this.count.textContent = `${this.order.length} of ${this.table.rows} rows${part}`;
    this.back.disabled = this.page === 0;
    this.forth.disabled = this.page >= pages - 1;
    for (const tool of [this.back, this.forth]) tool.hidden = pages === 1;
    this.sizes.hidden = this.table.rows <= PAGE_SIZES[0];
    this.paint(markedLayer());
  }

  row(row) {
    const made = element("tr");
    const layer = this.layers?.[row];
    if (isLayer(layer)) made.dataset.layer = layer;
    for (const column of this.table.columns) made.append(this.cell(column, row));
    return made;
  }

  cell(column, row) {
    const value = this.table.values[column.name][row];
    const text = written(value, column.kind);
    const classes = [column.kind === "text" ? "text" : "", text === "–" ? "missing" : ""].join(" ").trim();
    const cell = element("td", { class: classes || false });
    if (column.name === "layer" && isLayer(value))
      cell.append(element("button", { type: "button", "aria-label": `Mark layer ${value}` }, text));
    else cell.textContent = text;
    if (column.kind === "number" && value !== null) cell.title = String(value);
    return cell;
  }

  paint(layer) {
    for (const row of this.body.children) {
      row.classList.toggle("marked", layer !== null && row.dataset.layer === String(layer));
    }
  }

  mark(layer, pinned) {
    if (this.layers === null) return;
    const news = pinned !== this.pinned;
    this.pinned = pinned;
    if (news && this.only.checked) this.refresh();
    if (news && pinned !== null && !this.body.querySelector(`tr[data-layer="${pinned}"]`)) {
      const at = this.order.findIndex((row) => this.layers[row] === pinned);
      if (at >= 0) {
        this.page = Math.floor(at / this.size);
        this.draw();
      }
    }
    this.paint(layer);
    if (news && pinned !== null && !this.frame.matches(":hover, :focus-within")) this.show(pinned);
  }

  // Scrolls inside the frame alone: the reader's place on the page is theirs.
  show(layer) {
    const row = this.body.querySelector(`tr[data-layer="${layer}"]`);
    if (row) this.frame.scrollTop = row.offsetTop - this.head.offsetHeight - 40;
  }

  download() {
    const quoted = (value) => {
      const text = value === null ? "" : value === true ? "True" : value === false ? "False" : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const names = this.table.columns.map((column) => column.name);
    const lines = this.order.map((row) =>
      names.map((name) => quoted(this.table.values[name][row])).join(","),
    );
    const file = new Blob([[names.map(quoted).join(","), ...lines, ""].join("\n")], { type: "text/csv" });
    const link = element("a", { href: URL.createObjectURL(file), download: `${this.table.id}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
