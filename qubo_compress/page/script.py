"""The script of every page: tables sort, and pictures tell what is below the pointer, a finger or the arrow keys.

A page says all it has to say without the script. It reads nothing but the page.
"""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """
"use strict";
const value = cell => {
  const text = cell.textContent.trim(), found = text.replace(/[,\\u2212]/g, c => c === "," ? "" : "-");
  const number = parseFloat(found);
  return text === "\\u2013" || text === "" ? -Infinity : isNaN(number) ? text : number;
};
const before = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("n") ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now !== first ? first : first === "ascending" ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map(row => [value(row.cells[column]), row]);
      rows.sort((a, b) => sign * before(a[0], b[0]));
      body.append(...rows.map(row => row[1]));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
    });
  });
}
for (const told of document.querySelectorAll(".told")) {
  const strips = [...told.parentElement.querySelectorAll(".strip")];
  let here = -1;
  const tell = number => {
    here = number;
    strips.forEach(strip => [...strip.querySelectorAll("i")].forEach((bar, i) => {
      bar.classList.toggle("here", i === number);
      if (i === number) told.textContent = bar.title;
    }));
  };
  for (const strip of strips) {
    const bars = [...strip.querySelectorAll("i")];
    strip.tabIndex = 0;
    const point = event => {
      const box = strip.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      tell(Math.max(0, Math.min(bars.length - 1, Math.floor(share * bars.length))));
    };
    strip.addEventListener("pointermove", point);
    strip.addEventListener("pointerdown", point);
    strip.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      tell(Math.max(0, Math.min(bars.length - 1, here + step)));
    });
  }
}
for (const figure of document.querySelectorAll("figure[data-pairs]")) {
  const {names, values} = JSON.parse(figure.dataset.pairs), image = figure.querySelector("svg image");
  const told = figure.querySelector("output"), count = names.length;
  const point = event => {
    const box = image.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * count);
    const row = Math.floor((event.clientY - box.top) / box.height * count);
    if (row < 0 || column < 0 || row >= count || column >= count || row === column) return;
    const [a, b] = [Math.max(row, column), Math.min(row, column)];
    told.textContent = names[row] + " and " + names[column] + ": " + values[a * (a - 1) / 2 + b];
  };
  figure.querySelector("svg").addEventListener("pointermove", point);
  figure.querySelector("svg").addEventListener("pointerdown", point);
}
"""

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()

POLICY = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_HASH}'"
"""What a page may load: nothing from elsewhere, and no script but this one, whatever a layer is called."""
