/* From disk (file://) a browser lets no script read the other pages: search without excerpts. */
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

/* Charts as wide as their container listen to the window only; a sidebar that opens or closes
   changes the container too. */
document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector(".bd-article");
  if (!article || !document.querySelector(".vega-embed, [id^=altair-viz]")) return;
  let width = article.clientWidth;
  let timer;
  new ResizeObserver(() => {
    if (article.clientWidth === width) return;
    width = article.clientWidth;
    clearTimeout(timer);
    timer = setTimeout(() => window.dispatchEvent(new Event("resize")), 150);
  }).observe(article);
});
