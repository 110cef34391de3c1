/* What test_site.py looks at in a page: every page of the tests has `look`. */
window.look = (() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);

  /* WCAG's contrast of two colours, from 1 to 21. */
  function contrast(one, other) {
    const [dark, bright] = [one, other].map((colour) => {
      const [r, g, b] = colour.slice(0, 3).map((part) => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }).sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  }

  function ground(element) {
    for (let part = element; part; part = part.parentElement) {
      const colour = numbers(getComputedStyle(part).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  }

  const blend = (top, under, share) => top.slice(0, 3).map((v, i) => share * v + (1 - share) * under[i]);
  const holds = (box, x, y) => box.left <= x && x <= box.right && box.top <= y && y <= box.bottom;

  /* Texts of charts, which axe does not judge, with less contrast than WCAG asks for. A label on
     a coloured cell stands before the cell, all others before the page. */
  function faintTexts() {
    const faint = [];
    for (const svg of all(".vega-embed svg.marks")) {
      const page = ground(svg.parentElement);
      const cells = all(".mark-rect.role-mark path", svg).map((cell) => {
        const {fill, fillOpacity} = getComputedStyle(cell);
        const share = Number(cell.getAttribute("opacity") ?? 1) * fillOpacity;
        return fill === "none" ? null : [cell.getBoundingClientRect(), blend(numbers(fill), page, share)];
      }).filter(Boolean);
      for (const text of all("text", svg)) {
        const {fill, fillOpacity} = getComputedStyle(text);
        const box = text.getBoundingClientRect();
        const share = Number(text.getAttribute("opacity") ?? 1) * fillOpacity;
        if (fill === "none" || !box.width || !text.textContent.trim() || !share) continue;
        const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
        const inside = text.closest(".role-mark") ? cells.filter(([cell]) => holds(cell, x, y)) : [];
        const under = inside.length ? inside.at(-1)[1] : page;
        const found = contrast(blend(numbers(fill), under, share), under);
        if (found < 4.5) faint.push(`${text.textContent} (${fill}): ${found.toFixed(1)}`);
      }
    }
    return [...new Set(faint)];
  }

  /* The same for the colours of code, which is folded away where axe looks. */
  function faintCode() {
    const kinds = new Map(all("pre span[class]").map((span) => [span.className, span]));
    return [...kinds].map(([kind, span]) => {
      const box = span.closest("div.highlight") ?? span.closest("pre");
      return [kind, contrast(numbers(getComputedStyle(span).color), ground(box))];
    }).filter(([, found]) => found < 4.5).map(([kind, found]) => `.${kind}: ${found.toFixed(1)}`);
  }

  /* Charts of which a part can neither be seen nor scrolled to. */
  function cutOff(chart) {
    const box = chart.querySelector(".chart-wrapper");
    const svg = chart.querySelector("svg.marks");
    if (!box || !svg) return false; // not drawn: another test says so
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    const outside = box.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
    return outside || (svg.getBoundingClientRect().width > box.clientWidth + 1 && !scrolls);
  }

  const drawn = (chart) => chart.querySelector("svg.marks .role-mark > *");
  const set = (formula) => formula.querySelector("mjx-container svg");
  const reachable = (box) => box.scrollWidth <= box.clientWidth || box.tabIndex === 0;
  const charts = () => all("div[id^=altair-viz]");

  return {
    /* The theme sees 300 ms after a page was laid out anew which code scrolls now, or later. */
    ready: () => charts().every(drawn) && all(".math").every(set) && all("pre").every(reachable),
    page: () => ({
      scroll: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
      charts: charts().length,
      empty: charts().filter((chart) => !drawn(chart)).map((chart) => chart.id),
      cut: charts().filter(cutOff).map((chart) => chart.id),
      nameless: charts().filter((chart) => {
        const name = chart.querySelector(".chart-wrapper")?.getAttribute("aria-label") ?? "";
        return !chart.closest("figure") || name.length < 20 || name === "Vega visualization";
      }).map((chart) => chart.id),
      pictures: all(".bd-article img:not(.toggler)").map((img) => img.getAttribute("alt") ?? ""),
      ragged: all(".bd-article .cell_output table:not(:has(tbody [rowspan])) tbody :is(th, td)")
        .filter((cell) => /\p{L}{2}/u.test(cell.textContent) && getComputedStyle(cell).textAlign === "right")
        .map((cell) => cell.textContent),
      idle: all(".bd-article div.cell:has(> details.hide:only-child):not(:has(.cell_output))")
        .map((cell) => cell.textContent),
      unscoped: all(".bd-article :is(thead, tbody) th:not([scope])").map((th) => th.textContent),
      formulas: all(".math").length,
      unset: all(".math").filter((formula) => !set(formula)).map((formula) => formula.textContent),
      faint: [...faintTexts(), ...faintCode()],
      theme: document.documentElement.dataset.theme,
    }),
    /* Where the keyboard is, and whether that shows. */
    focus: () => {
      const element = document.activeElement;
      const ring = [element, ...element.children].some((part) => {
        const {outlineStyle, outlineWidth, boxShadow} = getComputedStyle(part);
        return (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) || boxShadow !== "none";
      });
      const box = element.getBoundingClientRect();
      const seen = box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0;
      const name = element.getAttribute("aria-label") || element.title || element.textContent.trim();
      return {tag: element.tagName, name: name.slice(0, 60), ring, seen};
    },
    /* What the page says: its text, also what is folded away, and that of pictures and charts. */
    words: () => {
      const copy = document.body.cloneNode(true);
      all("script, style", copy).forEach((part) => part.remove());
      const named = all("[alt], [aria-label]", copy);
      const said = named.map((part) => `${part.getAttribute("alt")} ${part.getAttribute("aria-label")}`);
      return [copy.textContent, ...said].join(" ").replace(/\s+/g, " ");
    },
    /* How much there is that can be operated, at most. */
    operable: () => all("a[href], button, input, select, summary, [tabindex]").length,
  };
})();
