/* From disk (file://) a browser lets no script read the other pages: search without excerpts. */
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

/* Charts as wide as their container listen to the window only. A container also changes with a
   sidebar that opens or closes, and may not have had its final width when its chart was drawn: it
   is watched from then on, and a chart of another width is drawn again. */
const widths = new WeakMap();
let timer;
const containers = new ResizeObserver((changed) => {
  const other = changed.filter(({target}) => widths.get(target) !== target.clientWidth);
  if (!other.length) return;
  other.forEach(({target}) => widths.set(target, target.clientWidth));
  clearTimeout(timer);
  timer = setTimeout(() => window.dispatchEvent(new Event("resize")), 150);
});

/* Charts: in SVG, which the style sheet can colour, and with a menu that asks no network. They are
   drawn once the whole page is there, since only then are its width and their captions known. */
if (window.vegaEmbed) {
  const embed = window.vegaEmbed;
  const fixed = {
    renderer: "svg",
    actions: {export: true, source: true, compiled: false, editor: false},
  };
  const whole = new Promise((go) => document.addEventListener("DOMContentLoaded", go));
  window.vegaEmbed = async (element, spec, options) => {
    await whole;
    const caption = element.closest("figure")?.querySelector(".caption-text")?.textContent.trim();
    const described = caption ? {description: caption, ...spec} : spec;
    const drawn = await embed(element, described, {...options, ...fixed});
    element.querySelector("summary")?.setAttribute("aria-label", "Save this chart, or its source");
    showSource(element, described);
    element.addEventListener("keydown", pressed);
    const chart = element.querySelector(".chart-wrapper");
    new MutationObserver(() => tend(chart)).observe(chart, {subtree: true, attributeFilter: ["role"]});
    tend(chart);
    watchBoxes(element);
    containers.observe(element);
    openClassSearch(element, drawn.view);
    return drawn;
  };
}

/* vega-embed would write a chart's source into a page as HTML, names and all. */
function showSource(element, spec) {
  const entries = [...element.querySelectorAll(".vega-actions a")];
  const theirs = entries.find((entry) => entry.textContent === "View Source");
  if (!theirs) return;
  const ours = theirs.cloneNode(true); /* without what it does when clicked */
  const source = new Blob([JSON.stringify(spec, null, 2)], {type: "application/json"});
  ours.href = URL.createObjectURL(source);
  ours.target = "_blank";
  theirs.replaceWith(ours);
}

/* An address may choose what a page shows: see.html?study=cifar10&class=cat */
const asked = new URLSearchParams(location.search);

function chooseAsked() {
  for (const input of document.querySelectorAll(".choice > input")) {
    if ([asked.get("study"), asked.get("class")].includes(input.value)) input.checked = true;
  }
}

/* The class explorer: its search suggests the names, and shows the class that the address names. On
   a page of several studies, only where there is such a class. */
function openClassSearch(element, view) {
  const box = element.querySelector("input[name=pick_class_name]");
  if (!box) return;
  const list = document.createElement("datalist");
  list.id = `${element.id}-names`;
  const names = view.signal("names");
  list.append(...names.map((name) => new Option(name)));
  element.append(list);
  box.setAttribute("list", list.id);
  /* Vega measures a chart before it lays it out anew, so its size would be that of the last class. */
  for (const signal of ["shown", "confused"]) {
    view.addSignalListener(signal, () => setTimeout(() => view.resize().runAsync()));
  }
  const name = asked.get("class");
  if (!name || (element.closest(".choice") && !names.includes(name))) return;
  box.value = name;
  box.dispatchEvent(new Event("input"));
}

/* What Vega leaves out, again whenever it writes its own: the entries of a legend that listens to
   clicks become buttons, and marks of which nothing can be said (a line at zero, a layer still
   empty) are for the eye alone. */
function tend(chart) {
  for (const symbols of chart.querySelectorAll(".role-legend-symbol[class*=_legend_symbols]")) {
    const entry = symbols.parentElement.parentElement;
    const label = entry.querySelector(".role-legend-label text")?.textContent;
    entry.setAttribute("tabindex", "0");
    entry.setAttribute("aria-label", `Show ${label} alone`);
    for (const [part, role] of [[entry, "button"], [entry.closest(".role-legend"), "group"]]) {
      if (part.getAttribute("role") !== role) part.setAttribute("role", role);
    }
  }
  const silent = chart.querySelectorAll(".role-mark[role=graphics-symbol]:not([aria-label])");
  silent.forEach((marks) => marks.setAttribute("aria-hidden", "true"));
}

/* Enter or the space bar on an entry of a legend is a click, with the shift key as well; Escape is
   a click beside it, which shows everything again. */
function pressed(event) {
  const entry = event.target.closest(".role-legend [role=button]");
  const symbol = entry?.querySelector(".role-legend-symbol path");
  const svg = event.target.closest("svg");
  const target = {Enter: symbol, " ": symbol, Escape: svg}[event.key];
  if (!entry || !target) return;
  event.preventDefault();
  target.dispatchEvent(new MouseEvent("click", {bubbles: true, shiftKey: event.shiftKey}));
}

/* A box that scrolls sideways can be reached, and so scrolled, by keyboard: as soon as it is there
   or becomes too wide for its place. It stays so: a page that is laid out anew may scroll a moment
   before the browser tells of it. */
const boxes = ".chart-wrapper, .cell_output .output, .pst-scrollable-table-container, mjx-container";
const sizes = new ResizeObserver((changed) => {
  changed.forEach(({target}) => reach(target.closest(boxes)));
});

function reach(box) {
  if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
}

function watchBoxes(part) {
  for (const box of part.querySelectorAll(boxes)) {
    reach(box); /* a busy machine may be late to tell of the size */
    [box, ...box.querySelectorAll("table")].forEach((each) => sizes.observe(each));
  }
}

/* Tables of the class sortable: a heading is a button that sorts the rows by its column, and again
   the other way round. A dash stands for nothing and comes last. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent.trim().replace("\u2212", "-");
      const compare = (a, b) => (parseFloat(a) - parseFloat(b) || a.localeCompare(b)) * (up ? 1 : -1);
      const rows = [...table.tBodies[0].rows].map((row) => [text(row), row]);
      rows.sort(([a], [b]) => (a === "–") - (b === "–") || compare(a, b));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

document.addEventListener("DOMContentLoaded", () => {
  chooseAsked();
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  watchBoxes(document);
  /* What the theme leaves without a name. */
  for (const summary of document.querySelectorAll(".bd-links summary")) {
    const title = summary.closest("li").querySelector("a").textContent;
    summary.setAttribute("aria-label", `Pages of ${title}`);
  }
  const sidebar = document.querySelector(".bd-sidebar-primary");
  sidebar?.setAttribute("role", "region");
  sidebar?.setAttribute("aria-label", "The book");
});
