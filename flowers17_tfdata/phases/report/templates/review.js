"use strict";
(() => {
  const data = JSON.parse(document.getElementById("review-data").textContent);
  const cards = [...document.querySelectorAll(".suspect")];
  if (!cards.length) return;
  const counter = document.getElementById("counter");
  // What each image's label becomes, by the image's place in the list.
  let decisions = load();
  let current = -1;

  // Some browsers refuse storage to pages that are opened from a file.
  function load() {
    try { return JSON.parse(localStorage.getItem(data.key)) || {}; } catch { return {}; }
  }
  function store() {
    try { localStorage.setItem(data.key, JSON.stringify(decisions)); } catch { /* not kept */ }
  }
  // The list may be ranked anew in another version of the page.
  const nameOf = (k) => `${data.images[k].split}/${data.images[k].file}`;

  function kindOf(k) {
    const chosen = decisions[nameOf(k)];
    if (chosen === undefined) return "";
    if (chosen === data.drop) return "drop";
    return chosen === data.images[k].class ? "keep" : "relabel";
  }

  function show(k) {
    const kind = kindOf(k), card = cards[k], image = data.images[k];
    const chosen = decisions[nameOf(k)];
    card.dataset.decision = kind;
    card.querySelectorAll("[data-do]").forEach((button) => {
      const isPressed = button.dataset.do === kind
        && (kind !== "relabel" || chosen === image.suggested);
      button.setAttribute("aria-pressed", String(isPressed));
    });
    const select = card.querySelector("select");
    const isOther = kind === "relabel" && chosen !== image.suggested;
    select.value = isOther ? chosen : "";
    select.classList.toggle("chosen", isOther);
  }

  function count() {
    const kinds = cards.map((_, k) => kindOf(k));
    const number = (kind) => kinds.filter((other) => other === kind).length;
    counter.textContent = `${cards.length - number("")} of ${cards.length} decided: `
      + `${number("keep")} kept, ${number("relabel")} relabelled, ${number("drop")} dropped`;
  }

  function decide(k, chosen) {
    if (chosen === undefined) delete decisions[nameOf(k)];
    else decisions[nameOf(k)] = chosen;
    show(k);
    count();
    store();
  }

  function go(k) {
    if (k < 0 || k >= cards.length) return;
    cards[k].focus({ preventScroll: true });
    cards[k].scrollIntoView({ block: "center" });
  }

  const classOf = {
    keep: (k) => data.images[k].class,
    relabel: (k) => data.images[k].suggested,
    drop: () => data.drop,
  };

  cards.forEach((card, k) => {
    const select = card.querySelector("select");
    const { class: label, suggested } = data.images[k];
    data.classes.filter((name) => name !== label && name !== suggested)
      .forEach((name) => select.add(new Option(name, name)));
    select.addEventListener("change", () => decide(k, select.value || undefined));
    card.querySelectorAll("[data-do]").forEach((button) => {
      button.addEventListener("click", () => {
        const isPressed = button.getAttribute("aria-pressed") === "true";
        decide(k, isPressed ? undefined : classOf[button.dataset.do](k));
      });
    });
    card.addEventListener("focusin", () => { current = k; });
    card.addEventListener("pointerdown", () => { current = k; });
    show(k);
  });
  count();

  const keys = { k: "keep", r: "relabel", d: "drop" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // There, letters and arrows choose an option.
    if (event.target.closest("select")) return;
    const at = Math.max(current, 0);
    if (event.key === "ArrowRight" || event.key === "n") go(current + 1);
    else if (event.key === "ArrowLeft" || event.key === "p") go(at - 1);
    else if (event.key in keys) { decide(at, classOf[keys[event.key]](at)); go(at + 1); }
    else if (event.key === "u") { decide(at, undefined); go(at); }
    else if (event.key === "c") cards[at].querySelector("select").focus();
    else return;
    event.preventDefault();
  });

  const quoted = (value) => /[",;\n\r]|^\s|\s$/.test(value)
    ? `"${value.replaceAll('"', '""')}"` : value;

  function table() {
    const names = ["file", "class", "new_class", ...(data.with_split ? ["split"] : [])];
    const decided = cards.map((_, k) => k).filter(kindOf).map(
      (k) => ({ ...data.images[k], new_class: decisions[nameOf(k)] }));
    const rows = [...data.earlier, ...decided].map((row) => names.map((name) => row[name]));
    // Spreadsheets take a file without the mark for one in another encoding.
    return "\ufeff" + [names, ...rows].map((row) => row.map(quoted).join(",") + "\r\n").join("");
  }

  document.getElementById("save").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = "corrections.csv";
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  });
  document.getElementById("forget").addEventListener("click", () => {
    if (!confirm("Forget all decisions on this page?")) return;
    decisions = {};
    cards.forEach((_, k) => show(k));
    count();
    store();
  });
})();
