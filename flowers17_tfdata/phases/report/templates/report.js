"use strict";
(() => {
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  // Some browsers refuse storage to pages that are opened from a file.
  const stored = {
    get() { try { return localStorage.getItem("flowers17_tfdata_theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("flowers17_tfdata_theme", value); } catch { /* not kept */ } },
  };

  // The charts' colours are CSS variables; Plotly needs their values.
  function resolve(value, style) {
    if (typeof value === "string") {
      if (value === "inherit") return style.fontFamily;
      const name = value.match(/^var\((--[\w-]+)\)$/);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((v) => resolve(v, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([k, v]) => [k, resolve(v, style)]));
    }
    return value;
  }

  const charts = [...document.querySelectorAll("script[data-chart]")].map((script) => ({
    element: document.getElementById(script.dataset.chart),
    figure: JSON.parse(script.textContent),
  }));

  function draw({ element, figure }) {
    const { data, layout } = resolve(figure, getComputedStyle(document.body));
    Plotly.react(element, data, layout, { displayModeBar: false, responsive: true });
  }

  function setTheme(theme) {
    root.dataset.theme = theme;
    charts.forEach(draw);
  }

  setTheme(stored.get() || (systemDark.matches ? "dark" : "light"));
  systemDark.addEventListener("change", (event) => {
    if (!stored.get()) setTheme(event.matches ? "dark" : "light");
  });
  document.getElementById("theme").addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    stored.set(theme);
    setTheme(theme);
  });
  // Paper is white.
  let before = null;
  addEventListener("beforeprint", () => { before = root.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => { if (before) setTheme(before); });

  function sortBy(table, header) {
    const column = [...header.parentNode.children].indexOf(header);
    const descending = header.getAttribute("aria-sort") === "ascending";
    const body = table.tBodies[0];
    const key = (row) => {
      const cell = row.children[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
    if (descending) rows.reverse();
    const isShort = body.querySelector(".more") !== null;
    rows.forEach((row, k) => {
      row.classList.toggle("more", isShort && k >= Number(table.dataset.first));
      body.append(row);
    });
    header.parentNode.querySelectorAll("[aria-sort]").forEach((other) => {
      other.setAttribute("aria-sort", "none");
    });
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  }
  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("th[aria-sort]").forEach((header) => {
      header.querySelector("button").addEventListener("click", () => sortBy(table, header));
    });
  });

  const showAll = document.getElementById("show-all");
  if (showAll) {
    showAll.addEventListener("click", () => {
      document.querySelectorAll("tr.more").forEach((row) => row.classList.remove("more"));
      showAll.parentNode.remove();
    });
  }

  document.querySelectorAll(".code .copy").forEach((button) => {
    // Only where the page may: not everywhere when it is opened from a file.
    if (!navigator.clipboard) { button.remove(); return; }
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentNode.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });

  const links = new Map([...document.querySelectorAll(".side li a")].map(
    (link) => [link.getAttribute("href").slice(1), link]));
  const observer = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id).setAttribute("aria-current", "true");
    });
  }, { rootMargin: "-20% 0px -70% 0px" });
  links.forEach((_, id) => observer.observe(document.getElementById(id)));
})();
