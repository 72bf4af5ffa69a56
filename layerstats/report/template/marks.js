// Which layer is marked: pointing at one marks it for a moment, a click keeps it (`pinned`).
const marks = { pinned: null, pointed: null, watchers: [], due: false };

function markedLayer() {
  return marks.pointed ?? marks.pinned;
}

function tell() {
  if (marks.due) return;
  marks.due = true;
  // Many pointer events come between two pictures of the screen; one answer is enough.
  requestAnimationFrame(() => {
    marks.due = false;
    for (const watcher of marks.watchers) watcher(markedLayer(), marks.pinned);
  });
}

function isLayer(layer) {
  return Number.isInteger(layer) && layer >= 0 && layer < page.num_layers;
}

function point(layer) {
  const next = isLayer(layer) ? layer : null;
  if (next === marks.pointed) return;
  marks.pointed = next;
  tell();
}

function pin(layer) {
  marks.pinned = isLayer(layer) ? layer : null;
  marks.pointed = null;
  tell();
}

function togglePin(layer) {
  pin(marks.pinned === layer ? null : layer);
}

function step(by) {
  if (!page.num_layers) return;
  const from = marks.pinned ?? (by > 0 ? -1 : page.num_layers);
  pin(Math.min(page.num_layers - 1, Math.max(0, from + by)));
}
