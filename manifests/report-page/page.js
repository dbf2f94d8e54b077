"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const order = new Map(data.domains.map((domain, index) => [domain, index]));
  const colour = (domain) => {
    const index = order.get(domain) ?? 0;
    return `oklch(${[0.62, 0.72, 0.54][Math.floor(index / 12) % 3]} 0.16 ${(index * 137.508) % 360})`;
  };
  const text = (tag, content, parent) => {
    const element = document.createElement(tag);
    element.textContent = content;
    parent.append(element);
    return element;
  };
  for (const dot of document.querySelectorAll(".dot")) dot.style.background = colour(dot.dataset.domain);

  // Light and dark
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-pressed", String(dark())); };
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  name();

  // Tables that sort
  const value = (row, column) => {
    const cell = row.cells[column];
    const raw = cell?.dataset.value ?? cell?.textContent.trim() ?? "";
    const number = Number(raw.replaceAll(",", "").replace(/ %$/, ""));
    return raw !== "" && Number.isFinite(number) ? number : raw.toLowerCase();
  };
  const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      if (header.classList.contains("plain")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      header.replaceChildren(button);
      button.addEventListener("click", () => {
        const first = header.classList.contains("n") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const direction = header.getAttribute("aria-sort") === first ? other : first;
        for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => sign * compare(value(a, header.cellIndex), value(b, header.cellIndex)));
        table.tBodies[0].append(...rows);
      });
    }
  }

  // The map
  const points = document.getElementById("points");
  const card = document.getElementById("card");
  const documents = data.map;
  const circles = [];
  let chosen = -1;
  let picked = null;
  let wanted = "";
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, content] of Object.entries(attributes)) element.setAttribute(key, content);
    return element;
  };
  const words = documents.map((each) => Object.values(each).join(" ").toLowerCase());
  const isOn = (index) => (picked === null || documents[index].domain === picked) && (!wanted || words[index].includes(wanted));
  const choose = (index) => {
    circles[chosen]?.classList.remove("chosen");
    chosen = index;
    const each = documents[index];
    circles[index].classList.add("chosen");
    card.replaceChildren();
    text("h3", each.id, card);
    text("p", `${each.domain} ${each.label}`, card);
    text("p", each.second ? `runner-up ${each.second} ${each.second_label}, margin ${each.margin}` : "", card);
    text("p", each.source ? `source: ${each.source}` : "", card);
    text("p", each.text, card);
  };
  const paint = () => circles.forEach((circle, index) => circle.classList.toggle("off", !isOn(index)));
  if (points) {
    const radius = documents.length > 800 ? 0.0105 : 0.016;
    documents.forEach((each, index) => {
      const circle = svg("circle", { cx: each.x, cy: each.y, r: radius, fill: colour(each.domain) });
      circle.addEventListener("mouseenter", () => choose(index));
      circle.addEventListener("click", () => choose(index));
      circles.push(circle);
      points.append(circle);
    });
    const middle = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
    const by = Map.groupBy ? Map.groupBy(documents, (each) => each.domain) : new Map();
    const biggest = [...by].sort((a, b) => b[1].length - a[1].length).slice(0, 24);
    for (const [domain, own] of biggest) {
      const label = svg("text", { x: middle(own.map((each) => each.x)), y: middle(own.map((each) => each.y)) });
      label.textContent = own[0].label.split(",")[0] || domain;
      points.append(label);
    }
    points.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way || !documents.length) return;
      event.preventDefault();
      const from = documents[chosen] ?? { x: 0, y: 0 };
      let best = -1;
      let least = Infinity;
      documents.forEach((each, index) => {
        const ahead = (each.x - from.x) * way[0] + (each.y - from.y) * way[1];
        const aside = Math.abs((each.x - from.x) * way[1] + (each.y - from.y) * way[0]);
        if (index !== chosen && ahead > 1e-6 && isOn(index) && ahead + 3 * aside < least) { least = ahead + 3 * aside; best = index; }
      });
      if (best >= 0) choose(best);
    });
  }

  // One domain alone
  for (const button of document.querySelectorAll(".pick")) {
    button.addEventListener("click", () => {
      picked = picked === button.dataset.domain ? null : button.dataset.domain;
      for (const each of document.querySelectorAll(".pick")) each.setAttribute("aria-pressed", String(each.dataset.domain === picked));
      paint();
    });
  }

  // Search in everything
  const found = document.getElementById("found");
  document.getElementById("search").addEventListener("input", (event) => {
    wanted = event.target.value.trim().toLowerCase();
    let count = 0;
    for (const item of document.querySelectorAll("main tbody tr, main article")) {
      const titles = [...item.querySelectorAll("[title]")].map((each) => each.title).join(" ");
      const fits = !wanted || `${item.textContent} ${titles}`.toLowerCase().includes(wanted);
      item.classList.toggle("hidden", !fits);
      if (fits && wanted) count += 1;
    }
    for (const each of document.querySelectorAll("main details")) if (wanted) each.open = true;
    paint();
    const onMap = wanted ? documents.filter((_, index) => isOn(index)).length : 0;
    found.textContent = wanted ? `${count} rows and ${onMap} points of the map hold “${wanted}”` : "";
  });
})();
