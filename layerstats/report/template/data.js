// What the page knows, and how it is written: tables by name, elements, numbers.
const page = JSON.parse(document.getElementById("data").textContent);
const tables = new Map(page.tables.map((table) => [table.id, table]));

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Five significant digits; whole numbers in full.
function written(value, kind) {
  if (value === null || value === undefined || value === "") return "–";
  if (kind === "bool") return value ? "yes" : "no";
  if (kind === "whole") return value.toLocaleString("en-US");
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(5)));
}

// plotly reads labels as markup: names must stay what they are.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function kindOf(table, name) {
  return table.columns.find((column) => column.name === name)?.kind;
}
